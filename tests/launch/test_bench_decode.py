"""launch/bench.py decode on a small model: every variant decodes, and the figures are of what they name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def test_every_variant_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(LAUNCH))
    import bench

    shape = {"hidden": 64, "intermediate": 96, "layers": 3, "attention_heads": 2, "vocab_size": 128}
    small = {"SHAPE": shape, "BLOCKS_IN_HEAD": 2, "BLOCK": 16, "DENSITY": 0.5, "CONTEXT": 4, "STEPS": 2}
    for name, value in small.items():
        monkeypatch.setattr(sys.modules["bench_decode"], name, value)
    written = tmp_path / "found.json"
    options = ["decode", "--repeats", "1", "--precision", "fp32", "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    bench.main()
    [found] = json.loads(written.read_text())
    block, norm = 4 * 64 * 64 + 3 * 64 * 96, 2 * 64
    whole = 3 * (block + norm) + 64 + 64 * 128
    assert found["trunk_share"] == pytest.approx((block + norm) / whole)
    alone = [row for row in found["rows"] if "layers_alone" in row]
    assert [row["layers_alone"] for row in alone] == ["dense", "block 64", "unit 1"] * 2
    assert all(row["cpu_ms"] > 0 and len(row["times"]) == 1 for row in alone)
    rows = {(row["variant"], row["batch"]): row for row in found["rows"] if "variant" in row}
    assert len(rows) == 2 * 6
    assert rows["dense M=1", 1]["bytes_read"] == 4 * whole
    ensemble = rows["dense M=3", 8]["bytes_read"]
    assert ensemble == 4 * (whole + 2 * (2 * (block + norm) + 64 + 64 * 128))
    assert rows["block 64 M=3", 1]["bytes_read"] == pytest.approx(ensemble / 2, rel=0.02)
    assert rows["unit 1 M=3", 1]["bytes_read"] == pytest.approx(ensemble * 0.5 * 6 / 4, rel=0.02)
    assert rows["block 64 M=3", 1]["bytes_read"] < rows["block 64 M=3, trunk dense", 1]["bytes_read"] < ensemble
    for row in rows.values():
        assert row["tokens_per_second"] > 0 and len(row["times"]) == 1
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["cpu_seconds_per_step"])
    assert "the trunk is" in capsys.readouterr().out
