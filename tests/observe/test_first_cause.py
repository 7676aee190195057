"""The reason that another rank wrote before it left, found in the logs."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from nt_pretrain.observe.first_cause import first_cause
from nt_pretrain.observe.log import open_rank_log


def gone(words: str) -> bool:
    return "has gone" in words


def write(folder: Path, rank: int, words: str, *, level: int = logging.ERROR) -> None:
    open_rank_log(folder / f"rank_{rank:05d}.log", rank)
    logging.getLogger("nt_pretrain").log(level, words)


def test_the_earliest_error_that_is_no_consequence(tmp_path: Path) -> None:
    since = time.time() - 1
    write(tmp_path, 0, "another rank has gone")
    write(tmp_path, 3, "slow disk", level=logging.WARNING)
    write(tmp_path, 2, "rank 2 failed:\nTraceback (most recent call last):\n  File x\n    y()\nRuntimeError: ECC error")
    time.sleep(0.01)
    write(tmp_path, 1, "data error: shard 7 is cut off")
    assert first_cause(tmp_path, since=since, is_consequence=gone) == "rank 2: RuntimeError: ECC error"


def test_errors_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, 1, "rank 1 failed: long ago")
    assert first_cause(tmp_path, since=time.time() + 2, is_consequence=gone, wait_seconds=0.0) == ""


def test_it_waits_for_a_rank_that_is_just_writing(tmp_path: Path) -> None:
    since = time.time() - 1
    late = threading.Timer(0.3, write, (tmp_path, 1, "out of memory"))
    late.start()
    assert first_cause(tmp_path, since=since, is_consequence=gone) == "rank 1: out of memory"
    late.join()


def test_nothing_is_found_in_vain(tmp_path: Path) -> None:
    write(tmp_path, 0, "another rank has gone")
    (tmp_path / "rank_00001.log").mkdir()
    assert first_cause(tmp_path, since=time.time() - 1, is_consequence=gone, wait_seconds=0.2) == ""
    assert first_cause(tmp_path / "absent", since=0.0, is_consequence=gone, wait_seconds=0.0) == ""
