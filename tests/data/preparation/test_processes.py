"""Work of several processes is told as it goes, fails as a whole, and ends with the command that began it."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation import processes
from nt_pretrain.data.preparation.processes import Advance, work_through


def write_number(folder: Path, number: int, advance: Advance) -> None:
    (folder / str(number)).write_text(str(os.getpid()))
    for _ in range(10):
        advance(number)


def fail(advance: Advance) -> None:
    raise DataError("the third file is damaged")


def work_for_ever(advance: Advance) -> None:
    while True:
        advance(0)


def be_killed(advance: Advance) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_and_told(tmp_path: Path, workers: int) -> None:
    told: list[int] = []
    work_through([partial(write_number, tmp_path, number) for number in range(6)], workers, told.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("012345")
    assert sum(told) == 150
    others = {path.read_text() for path in tmp_path.iterdir()} - {str(os.getpid())}
    assert bool(others) == (workers > 1)


@pytest.mark.timeout(60)
def test_an_error_ends_the_others() -> None:
    with pytest.raises(DataError, match="the third file is damaged"):
        work_through([work_for_ever, fail], 2, lambda _: None)


@pytest.mark.timeout(60)
def test_ctrl_c_ends_the_others() -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_through([work_for_ever, work_for_ever], 2, interrupt)


@pytest.mark.timeout(60)
def test_ctrl_c_amid_the_waiting_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Always looking at all tasks: the moment at which Python's own KeyboardInterrupt would leave locks behind.
    monkeypatch.setattr(processes, "_SECONDS_BETWEEN_LOOKS", 0.0)
    before = signal.getsignal(signal.SIGINT)
    for _ in range(3):
        later = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        later.start()
        with pytest.raises(KeyboardInterrupt):
            work_through([work_for_ever] * 2000, 2, lambda _: None)
        later.join()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.timeout(60)
def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(DataError, match=r"a process was killed, .*What is finished is kept; .*fewer --workers"):
        work_through([be_killed, work_for_ever], 2, lambda _: None)
