"""Ranks that do not come are named by those that wait, on real ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.watchdog import ALL_ARE_THERE, NO_ANSWER, Sign, Watchdog, behind, first_waiting, silent
from tests.gloo import run_ranks


def signs(*collectives: int) -> list[Sign]:
    return [Sign(1, count, 7, "computing gradients", 3.5) for count in collectives]


def test_who_entered_fewer_collectives_is_behind() -> None:
    assert behind(signs(4, 4, 4)) == ""
    assert behind(signs(4, 3, 4, 2)) == (
        "missing: rank 1 (step 7, computing gradients for 3.5 s), rank 3 (step 7, computing gradients for 3.5 s)"
    )
    assert first_waiting(signs(3, 4, 4)) == 1
    many = behind(signs(5, *[1] * 30))
    assert many.count("rank ") == 8 and many.endswith(" and 22 more")


def test_who_gives_no_sign_is_silent() -> None:
    before, after = signs(4, 4), [Sign(2, 4, 7, "reading data", 5.0), Sign(1, 4, 7, "computing gradients", 3.5)]
    assert silent(before, after) == "missing: rank 1 (step 7, computing gradients for 3.5 s)"
    assert silent(before, [after[0], after[0]]) == ""


def _late(rank: int, world: int) -> tuple[list[tuple[str, bool]], str]:
    """Rank 1 does not enter the second sum for two seconds."""
    ranks = connect(Config())
    told: list[tuple[str, bool]] = []
    watchdog = Watchdog(ranks, 2.0, lambda words, aloud: told.append((words, aloud)))
    watchdog.at(3, "reading data")
    dist.all_reduce(torch.zeros(1), group=ranks.control)
    if rank == 1:
        time.sleep(2.5)
        told.clear()  # it was at the same place for long, too
    dist.all_reduce(torch.zeros(1), group=ranks.control)
    while_all_go_on = watchdog.missing()
    dist.barrier(group=ranks.control)
    watchdog.close()
    return told, while_all_go_on


def test_a_late_rank_is_named_while_others_wait() -> None:
    (first, there), (_, _), (third, _) = run_ranks(_late, 3, timeout=60)
    ((words, aloud),) = first
    assert words.startswith("rank 0 is at step 3, reading data for 1 s; missing: rank 1 (step 3, reading data for ")
    assert aloud and not third[0][1], "one rank tells the console"
    assert there == ALL_ARE_THERE


def _stopped(rank: int, world: int) -> str:
    """The process of rank 1 stands still; rank 0 has nothing to compare but signs of life."""
    ranks = connect(Config())
    watchdog = Watchdog(ranks, 4.0)
    dist.barrier(group=ranks.control)
    if rank == 1:
        pid = os.getpid()
        if os.fork() == 0:  # somebody has to wake it up again
            time.sleep(3)
            os.kill(pid, signal.SIGCONT)
            os._exit(0)
        os.kill(pid, signal.SIGSTOP)
        words = ""
    else:
        time.sleep(1)
        words = watchdog.missing()
    dist.barrier(group=ranks.control)
    watchdog.close()
    return words


def test_a_process_that_stands_still_is_named() -> None:
    words, _ = run_ranks(_stopped, 2, timeout=60)
    assert words.startswith("missing: rank 1 (step 0, starting for ")


def _without_store(rank: int, world: int, store: Any) -> str:
    ranks = connect(Config())
    watchdog = Watchdog(ranks, 2.0)
    watchdog._store = store
    words = watchdog.missing()
    watchdog.close()
    return words


class _Gone:
    def set(self, key: str, value: str) -> None:
        raise dist.DistNetworkError("Broken pipe\nsecond line")


class _Silent:
    def set(self, key: str, value: str) -> None:
        time.sleep(600)


def test_a_store_that_is_gone_hides_nothing() -> None:
    (words,) = run_ranks(_without_store, 1, _Gone(), timeout=60)
    assert words == f"{NO_ANSWER} (Broken pipe)"


def test_a_store_that_is_silent_is_not_waited_for() -> None:
    """Six seconds, and no more when it leaves; the run would take ten minutes otherwise."""
    (words,) = run_ranks(_without_store, 1, _Silent(), timeout=60)
    assert words == f"{NO_ANSWER} (not for 6 s)"


def test_the_thread_ends() -> None:
    run_ranks(_ends, 1, timeout=60)


def _ends(rank: int, world: int) -> None:
    watchdog = Watchdog(connect(Config()), 600.0)
    before = time.monotonic()
    watchdog.close()
    assert time.monotonic() - before < 2, "it does not sleep to its next sign"
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
