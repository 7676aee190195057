from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from nt_pretrain.observe.log import Console, duration, format_step, open_rank_log

VALUES = {
    "train/loss": 3.412,
    "train/loss_head_0": 3.43,
    "train/loss_head_1": 3.44,
    "train/loss_head_2": 3.45,
    "optim/grad_norm": 0.81,
    "optim/lr": 1.5e-3,
    "throughput/tokens_per_second": 329_600.0,
    "throughput/mfu": 0.38,
    "time/data_fraction": 0.004,
    "memory/peak_bytes": 61e9,
    "sparsity/density": 0.9,
    "sparsity/turnover": 0.082,
}
GPU = {"world": 8, "device": "gpu", "memory_total": 100_000_000_000}


@pytest.fixture(autouse=True)
def quiet_root_logger() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.get_name() == "nt_pretrain.rank_log"]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.WARNING)


def test_the_line_of_a_log_step() -> None:
    assert format_step(1200, 11_111, VALUES, **GPU, eta_seconds=5 * 3600 + 12 * 60) == (
        "step  1,200/11,111 loss  3.412 (heads  3.43  3.44  3.45) grad  0.81 lr 1.5e-3  41.2k tok/s/gpu mfu 38%"
        " data  0.4% mem  61% density 0.90 turnover  8.2% eta 5h12m"
    )


def test_lines_are_aligned_whatever_the_numbers() -> None:
    other = VALUES | {
        "train/loss": 10.31,
        "train/loss_head_1": 10.4,
        "optim/grad_norm": 12.5,
        "optim/lr": 0.0,
        "throughput/tokens_per_second": 7200.0,
        "throughput/mfu": 0.04,
        "time/data_fraction": 0.5,
        "memory/peak_bytes": 100e9,
        "sparsity/density": 1.0,
    }
    del other["sparsity/turnover"]
    first = format_step(1, 11_111, VALUES, **GPU, eta_seconds=None)
    final = format_step(11_111, 11_111, other, **GPU, eta_seconds=None)
    words = ("loss", "(heads", "grad", "lr", "tok/s", "mfu", "data", "mem", "density", "turnover", "eta")
    assert [first.index(word) for word in words] == [final.index(word) for word in words]


def test_what_a_run_does_not_have_is_left_out() -> None:
    values = {"train/loss": 3.412, "train/loss_head_0": 3.412, "memory/peak_bytes": 1.5e9}
    line = format_step(5, 40, values, world=2, device="rank", memory_total=None, eta_seconds=42.0)
    assert "heads" not in line and "mfu" not in line and "density" not in line and "turnover" not in line
    assert "mem 1.50GB" in line
    assert line.endswith("eta 42s")


def test_a_diverging_loss_is_shown_as_it_is() -> None:
    assert "loss    nan " in format_step(5, 40, {"train/loss": float("nan")}, **GPU, eta_seconds=None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (250, "4m10s"), (18_720, "5h12m"), (273_600, "3d04h"), (None, "-")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def console(stream: io.StringIO, rank: int = 0) -> Console:
    return Console(rank, total_steps=100, world=2, device="rank", stream=stream)


def test_only_rank_0_prints_and_every_rank_logs(tmp_path: Path) -> None:
    stream = io.StringIO()
    open_rank_log(tmp_path / "ranks" / "rank_00001.log", 1)
    console(stream, rank=1).event("resumed from step 40")
    assert stream.getvalue() == ""
    (line,) = (tmp_path / "ranks" / "rank_00001.log").read_text().splitlines()
    assert line.endswith("rank 1 INFO nt_pretrain: resumed from step 40")


def test_opening_the_log_again_does_not_double_lines(tmp_path: Path) -> None:
    open_rank_log(tmp_path / "a.log", 0)
    open_rank_log(tmp_path / "b.log", 0)
    logging.getLogger("anything").warning("once")
    assert (tmp_path / "a.log").read_text() == ""
    assert (tmp_path / "b.log").read_text().count("once") == 1


def test_long_lines_and_brackets_are_printed_as_given() -> None:
    stream = io.StringIO()
    text = "checkpoint [bold]not markup[/bold] :smile: " + "x" * 400
    console(stream).event(text, level="warning")
    assert stream.getvalue() == text + "\n"


def test_turnover_stays_until_the_next_update() -> None:
    stream = io.StringIO()
    shown = console(stream)
    shown.step(10, VALUES, eta_seconds=1.0)
    shown.step(11, {key: value for key, value in VALUES.items() if key != "sparsity/turnover"}, eta_seconds=1.0)
    assert all("turnover  8.2%" in line for line in stream.getvalue().splitlines())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_and_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    printed = {}
    for name, stream in {"file": io.StringIO(), "terminal": Terminal()}.items():
        console(stream).event("saved")
        printed[name] = stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    console(plain).event("saved")
    assert printed["file"] == plain.getvalue() == "saved\n"
    assert printed["terminal"] != "saved\n" and "saved" in printed["terminal"]
