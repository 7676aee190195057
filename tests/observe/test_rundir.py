from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.rundir import RunDir, Status, timestamp, write_atomic


def test_paths_and_folders(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path / "runs" / "one")
    assert not rundir.path.exists()
    rundir.create()
    rundir.create()
    assert sorted(path.name for path in rundir.path.iterdir()) == ["checkpoints", "ranks"]
    assert rundir.rank_log(3) == rundir.path / "ranks" / "rank_00003.log"
    assert (rundir.stop.name, rundir.save.name) == ("STOP", "SAVE")


def test_status_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    assert rundir.read_status() is None
    status = Status(state="stopped", step=7, total_steps=40, exit_code=ExitCode.STOPPED, message="SIGTERM")
    rundir.write_status(status)
    assert rundir.read_status() == status
    raw = json.loads(rundir.status.read_text())
    assert set(raw) == {"state", "step", "total_steps", "exit_code", "message", "pid", "started", "updated"}
    assert raw["pid"] == os.getpid()
    assert raw["started"] <= raw["updated"] <= timestamp()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "running"}', '{"unknown": 1}'])
def test_a_status_of_another_make_is_no_status(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    assert RunDir(tmp_path).read_status() is None


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", "old")
    write_atomic(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"


def _write_many(path: Path) -> None:
    for step in range(150):
        RunDir(path).write_status(Status(state="running", step=step, total_steps=150, message="x" * 5000))


@pytest.mark.timeout(60)
def test_a_reader_never_sees_half_a_status(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    rundir.write_status(Status(state="running", step=0, total_steps=150))
    writer = multiprocessing.get_context("fork").Process(target=_write_many, args=(tmp_path,))
    writer.start()
    while writer.is_alive():
        json.loads(rundir.status.read_text())
    writer.join()
    assert writer.exitcode == 0
