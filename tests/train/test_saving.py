"""Whole runs whose disk stops in the middle of a save: training goes on, ends and dies as it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus
from tests.train import launches

SCRIPT = "tests/train/held_disk.py"
OPTIONS = ["train.steps=40", "checkpoint.save_every_steps=10", "observe.log_every_steps=1", "sparsity.update_every=7"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose saves are waited for."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    options = [*corpus.overrides, *OPTIONS, "checkpoint.asynchronous=false"]
    launches.finish(launches.start(2, folder, *options), folder)
    return folder


def start_held(corpus: Corpus, folder: Path, *overrides: str, step: int = 10) -> subprocess.Popen[str]:
    """Start a run whose disk stops when the checkpoint of ``step`` is written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "HOLD").write_text(f"step_{step:08d}.tmp")
    return launches.start(2, folder, *corpus.overrides, *OPTIONS, *overrides, script=SCRIPT)


def wait_until_held(process: subprocess.Popen[str], folder: Path) -> Path:
    """The folder of the save that waits for the disk."""
    deadline = time.monotonic() + 120
    while not (folder / "HELD").exists():
        assert process.poll() is None, f"ended before a save was held:\n{launches.tail(folder)}"
        if time.monotonic() > deadline:
            launches.kill_tree(process)
            raise AssertionError(f"no save was held within 120 s:\n{launches.tail(folder)}")
        time.sleep(0.02)
    return RunDir(folder).checkpoints / (folder / "HOLD").read_text()


def release(folder: Path) -> None:
    (folder / "HOLD").unlink()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in RunDir(folder).checkpoints.iterdir())


def test_training_goes_on_to_the_next_save_and_gives_the_same_bits(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "goes_on"
    process = start_held(corpus, folder)
    assert wait_until_held(process, folder).name == "step_00000010.tmp"
    launches.wait_for_step(process, folder, 20)
    time.sleep(0.5)  # time to go wrong: the save of step 20 has to wait for this one
    assert launches.last_step(folder) == 20 and names(folder) == ["step_00000010.tmp"]
    release(folder)
    launches.finish(process, folder)
    launches.assert_same_run(undisturbed, folder, 40)
    assert names(folder) == names(undisturbed) == ["step_00000030", "step_00000040"]
    for run in (folder, undisturbed):
        lines = [line for line in read_lines(RunDir(run).metrics) if "checkpoint/total_seconds" in line]
        assert [line["step"] for line in lines] == [10, 20, 30, 40]
        events = [event for event in read_lines(RunDir(run).events) if event["kind"] == "checkpoint"]
        for line, event in zip(lines, events, strict=True):
            for name in ("stall_seconds", "total_seconds"):
                assert line[f"checkpoint/{name}"] == event["facts"][name] > 0
    # Of the first save, held by the disk through ten steps, the loop has waited for a part only.
    first = next(event for event in read_lines(RunDir(folder).events) if event["kind"] == "checkpoint")
    assert first["facts"]["stall_seconds"] < first["facts"]["total_seconds"]


def test_killed_while_a_save_is_in_flight(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "killed"
    process = start_held(corpus, folder, step=20)
    held = wait_until_held(process, folder)
    launches.wait_for_step(process, folder, 23)
    pid = RunDir(folder).read_status().pid  # type: ignore[union-attr]
    next(worker for worker in launches.workers(process) if worker.pid == pid).kill()
    assert process.wait(120) != 0
    assert names(folder) == ["step_00000010", "step_00000020.tmp"]
    release(folder)
    launches.finish(launches.start(2, folder, *corpus.overrides, *OPTIONS), folder)
    text = (folder / "console.log").read_text()
    assert f"{held}: removed, it was left by a save that was interrupted" in text
    assert "from step 10 (step_00000010)" in text
    launches.assert_same_run(undisturbed, folder, 40)


def test_a_signal_while_a_save_is_in_flight(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "signal"
    process = start_held(corpus, folder)
    wait_until_held(process, folder)
    launches.wait_for_step(process, folder, 13)
    launches.workers(process)[1].terminate()
    time.sleep(1)
    assert process.poll() is None and names(folder) == ["step_00000010.tmp"], "the run waits for the save in flight"
    release(folder)
    launches.finish(process, folder, expect=1)
    status = RunDir(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("stopped", 75)
    assert names(folder) == ["step_00000010", f"step_{status.step:08d}"] and 13 <= status.step < 20


def test_a_save_that_fails_ends_the_run_at_the_next_step(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "fails"
    process = start_held(corpus, folder, "checkpoint.save_every_steps=30", step=30)
    held = wait_until_held(process, folder)
    launches.wait_for_step(process, folder, 31)
    shutil.rmtree(held)
    release(folder)
    launches.finish(process, folder, expect=1)
    status = RunDir(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 4)
    assert 30 < status.step < 40, "it did not wait for the next save, at the end of the run"
    assert f"checkpoint error: cannot save {held.with_suffix('')}: " in status.message
    assert "No such file or directory" in status.message
    codes = re.findall(r"exitcode  : (-?\d+)", launches.tail(folder))
    assert set(codes) == {"4"}, "no rank ended for another reason"
    assert 'File "' + str(launches.ROOT / "nt_pretrain") not in launches.tail(folder)


def test_a_run_that_diverges_finishes_the_save_in_flight(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "diverges"
    options = ["checkpoint.save_every_steps=1", "optim.lr=1e30", "optim.warmup_steps=0", "optim.clip=0"]
    process = start_held(corpus, folder, *options, step=1)
    held = wait_until_held(process, folder)
    time.sleep(1)
    assert process.poll() is None and names(folder) == [held.name], "the run waits for the save in flight"
    release(folder)
    launches.finish(process, folder, expect=1)
    status = RunDir(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 5)
    assert names(folder) == ["step_00000001"]
    kinds = [json.loads(line)["kind"] for line in RunDir(folder).events.read_text().splitlines()]
    assert kinds[-2:] == ["end", "checkpoint"], "the cause is told at once, the save when it is in place"
