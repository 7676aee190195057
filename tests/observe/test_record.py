from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nt_pretrain.observe.history import read_lines, series
from nt_pretrain.observe.record import Recorder, undo_after
from nt_pretrain.observe.rundir import RunDir


@pytest.fixture
def rundir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path)
    made.create()
    return made


def train(rundir: RunDir, first: int, final: int, *, start_step: int, shift: float = 0.0) -> None:
    """Record steps first..final and go away as a killed process does: without close()."""
    recorder = Recorder(rundir, start_step=start_step, tensorboard=True)
    for step in range(first, final + 1):
        recorder.metrics(step, {"train/loss": step + shift})
    recorder.flush()


def test_one_line_per_call_with_step_and_time(rundir: RunDir) -> None:
    recorder = Recorder(rundir, start_step=0, tensorboard=False)
    recorder.metrics(10, {"train/loss": 3.5, "optim/lr": 1e-3})
    line = json.loads(rundir.metrics.read_text())  # on disk before close
    assert line.pop("time").endswith("Z")
    assert line == {"step": 10, "train/loss": 3.5, "optim/lr": 1e-3}
    assert not rundir.tensorboard.exists()


def test_numbers_json_does_not_have_become_null(rundir: RunDir) -> None:
    Recorder(rundir, start_step=0, tensorboard=False).metrics(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    line = json.loads(rundir.metrics.read_text(), parse_constant=pytest.fail)
    assert (line["a"], line["b"], line["c"]) == (None, None, 1.0)


def test_events_say_what_and_why(rundir: RunDir) -> None:
    recorder = Recorder(rundir, start_step=0, tensorboard=False)
    recorder.event("checkpoint", 40, "every 40 steps", {"path": Path("checkpoints/step_00000040"), "seconds": 0.2})
    (event,) = read_lines(rundir.events)
    assert (event["kind"], event["step"], event["reason"]) == ("checkpoint", 40, "every 40 steps")
    assert event["facts"] == {"path": "checkpoints/step_00000040", "seconds": 0.2}


def test_a_resumed_run_is_one_curve(rundir: RunDir) -> None:
    train(rundir, 1, 15, start_step=0)
    train(rundir, 11, 18, start_step=10, shift=0.5)  # killed at 15, last checkpoint at 10
    train(rundir, 13, 20, start_step=12, shift=0.25)
    steps, losses = series(read_lines(rundir.metrics), "train/loss")
    expected = [float(s) for s in range(1, 11)] + [11.5, 12.5] + [s + 0.25 for s in range(13, 21)]
    assert (steps, losses) == (list(range(1, 21)), expected)
    undone = [line["train/loss"] for line in read_lines(rundir.metrics_undone)]
    assert undone == [11.0, 12.0, 13.0, 14.0, 15.0, 13.5, 14.5, 15.5, 16.5, 17.5, 18.5]

    board = EventAccumulator(str(rundir.tensorboard)).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in board] == list(zip(range(1, 21), expected, strict=True))


def test_resuming_at_the_last_line_moves_nothing(rundir: RunDir) -> None:
    train(rundir, 1, 5, start_step=0)
    before = rundir.metrics.read_bytes()
    assert undo_after(rundir, 5) == 0
    assert rundir.metrics.read_bytes() == before
    assert not rundir.metrics_undone.exists()


def test_starting_over_undoes_everything(rundir: RunDir) -> None:
    train(rundir, 1, 5, start_step=0)
    assert undo_after(rundir, 0) == 5
    assert rundir.metrics.read_text() == ""


def test_lines_cut_short_by_a_kill_do_not_spoil_the_next(rundir: RunDir) -> None:
    rundir.metrics.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/lo')
    rundir.events.write_text('{"kind": "start", "step": 0}\n{"kind": "che')
    recorder = Recorder(rundir, start_step=2, tensorboard=False)
    recorder.metrics(3, {"train/loss": 3.0})
    recorder.event("resume", 2, "from a checkpoint", {})
    assert series(read_lines(rundir.metrics), "train/loss") == ([1, 3], [1.0, 3.0])
    assert rundir.metrics.read_text().count("\n") == 2
    assert [event["kind"] for event in read_lines(rundir.events)] == ["start", "resume"]
