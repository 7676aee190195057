"""launch/bench.py layer on a small layer: every format runs, and the figures are of what they name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def test_every_format_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(LAUNCH))
    import bench

    for name, value in {"TOKENS": 24, "INPUTS": 1024, "OUTPUTS": 128}.items():
        monkeypatch.setattr(sys.modules["bench_layer"], name, value)
    written = tmp_path / "found.json"
    options = ["layer", "--plain-torch", "--repeats", "1", "--precision", "fp32", "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    bench.main()
    [found] = json.loads(written.read_text())
    assert found["kernels"] == "plain torch"
    sparse = [row for row in found["rows"] if row["layer"] != "dense"]
    assert {row["layer"] for row in sparse} == {"block 16", "block 32", "block 64", "block 128", "csr"}
    blocks = [row["density"] for row in sparse if row["layer"] == "block 64"]
    assert blocks == [0.125, 0.1875, 0.5]
    assert all(row["ratio"]["cpu"] > 0 and len(row["times"]) == 1 for row in sparse)
    assert "of density x dense" in capsys.readouterr().out


def test_convolutions_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(LAUNCH))
    import bench
    import bench_conv

    shapes = (bench_conv.Shape(32, 48, 3, 6, 16, (2, 9), stride=2), bench_conv.Shape(32, 16, 1, 5, 16, (1,)))
    monkeypatch.setattr(bench_conv, "SHAPES", shapes)
    written = tmp_path / "found.json"
    options = ["layer", "--convolutions", "--plain-torch", "--repeats", "1", "--precision", "fp32", "--json"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options, str(written)])
    bench.main()
    found = json.loads(written.read_text())
    assert [each["pictures"] for each in found] == [8, 32]
    rows = [(row["layer"], row.get("density")) for row in found[0]["rows"]]
    assert rows == [
        ("3x3 32 to 48 at 6 stride 2", None),
        ("3x3 32 to 48 at 6 stride 2", 2 / 18),
        ("3x3 32 to 48 at 6 stride 2", 0.5),
        ("1x1 32 to 16 at 5", None),
        ("1x1 32 to 16 at 5", 0.5),
    ]
    assert "of density x dense" in capsys.readouterr().out


def test_the_table_of_a_gpu_has_what_runs_and_names_what_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU here: one head after another runs there too, and what needs a GPU is left out with its reason."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    import bench_layer_gpu

    monkeypatch.setattr(bench_layer_gpu, "SHAPES", ((512, 256),))
    monkeypatch.setattr(bench_layer_gpu, "LARGE", 64)
    [found] = bench_layer_gpu.bench_layer_gpu("fp32", [40], 2, torch.device("cpu"))
    rows = {(row["heads"], row["way"], row["density"]): row for row in found["rows"]}
    assert {way for _, way, _ in rows} == {"dense", "masked", "Triton 64", "Triton 128"}
    assert {density for _, way, density in rows if way == "Triton 128"} == {0.25, 0.5}
    assert rows[3, "dense", 1.0]["of_dense"] == 1.0
    assert all(len(row["seconds"]) == 2 and row["tflops"] > 0 for row in found["rows"])
    assert "need a CUDA device" in found["left_out"]["Triton 64, one call, 3 head(s)"]
    assert "stk 128, 1 head(s)" in found["left_out"] and "torch BSR 64, 1 head(s)" in found["left_out"]
    assert "called the peak" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_told_what_runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(LAUNCH))
    import bench

    monkeypatch.setattr(sys, "argv", ["bench.py", "layer", "--device", "cuda"])
    with pytest.raises(SystemExit) as left:
        bench.main()
    told = capsys.readouterr().err
    assert left.value.code == 2 and "there is no CUDA device here" in told and "Triton kernels" in told
