"""Who is missing when ranks wait for one another.

A thread of each rank tells the others through the store of the process group where it is: step, what it does, since
when, and how many collectives it has entered. All ranks of a mesh enter the same number, so a rank that waits longer
than it should can name those that have entered fewer. It does so when half of the timeout has passed: NCCL ends a
process at the whole of it without asking anyone.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from nt_pretrain.parallel.mesh import Ranks, groups_of

MOST_SECONDS = 2.0
"""Between two signs of life."""
ANSWER_SECONDS = 5.0
"""That the store may take for an answer."""

NO_ANSWER = "the store of the process group, on the node of rank 0, does not answer"
ALL_ARE_THERE = (
    "all ranks have entered the same collectives and show signs of life; the network between them may be cut"
)


@dataclass(frozen=True)
class Sign:
    """What a rank last said: number of the sign, collectives entered, step, what it does and for how many seconds."""

    number: int
    collectives: int
    step: int
    doing: str
    seconds: float


class Watchdog:
    """Signs of life of this rank, and those of the others.

    Args:
        ranks: of the run; every rank makes a watchdog.
        timeout_seconds: what a collective may take.
        tell: is called in the watchdog's thread, once for each place where this rank waits too long, with a warning and
            whether this is the first rank that waits: it tells the console, all others only their log.
    """

    def __init__(self, ranks: Ranks, timeout_seconds: float, tell: Callable[[str, bool], None] | None = None) -> None:
        self._ranks, self._timeout, self._tell = ranks, timeout_seconds, tell or _tell
        self._groups = groups_of(ranks)
        # torch's type stubs lack clone() and, below, the sequence number.
        self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._store.set_timeout(datetime.timedelta(seconds=ANSWER_SECONDS))
        self._place: tuple[int, str, float] = (0, "starting", time.monotonic())
        self._number = 0
        self._speaks = True
        self._warned: tuple[int, str, float] | None = None
        self._closed = False
        self._wake = threading.Event()
        self._say()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def at(self, step: int, doing: str) -> None:
        """This rank is at ``step`` and begins ``doing``."""
        self._place = (step, doing, time.monotonic())

    def allow(self, timeout_seconds: float) -> None:
        """From now on a collective may take so long."""
        self._timeout = timeout_seconds
        self._wake.set()  # with a shorter timeout signs come more often

    def close(self) -> None:
        """Stop watching; the store may go."""
        self._closed = True
        self._wake.set()
        self._thread.join(1.0)  # it may wait for a store that is gone

    def missing(self) -> str:
        """Which ranks the others wait for, in words; never raises, and soon returns.

        The store is asked in a thread of its own: behind a cut link its client may wait much longer than told to.
        """
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(self._ask()), name="watchdog asks", daemon=True).start()
        seconds = ANSWER_SECONDS + 2 * self._interval
        try:
            return answers.get(timeout=seconds)
        except queue.Empty:
            return f"{NO_ANSWER} (not for {seconds:.0f} s)"

    def _ask(self) -> str:
        try:
            self._say()
            first = self._signs()
            self._speaks = first_waiting(first) == self._ranks.rank
            time.sleep(2 * self._interval)  # what others said last may be that old
            second = self._signs()
            return behind(second) or silent(first, second) or ALL_ARE_THERE
        except Exception as error:  # whatever is wrong with the store must not hide the error that brought us here
            return f"{NO_ANSWER} ({_first_line(error)})"

    @property
    def _interval(self) -> float:
        return min(MOST_SECONDS, self._timeout / 8)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._interval)
            self._wake.clear()
            with contextlib.suppress(Exception):  # the store may be gone; the collectives will tell
                self._say()
            place = self._place
            if time.monotonic() - place[2] > self._timeout / 2 and self._warned != place:
                self._warned = place
                words = self.missing()
                waited = f"rank {self._ranks.rank} is at step {place[0]}, {place[1]} for {self._timeout / 2:.0f} s"
                self._tell(f"{waited}; {words}", self._speaks)

    def _say(self) -> None:
        step, doing, since = self._place
        self._number += 1
        collectives = sum(each._get_sequence_number_for_group() for each in self._groups)  # type: ignore[attr-defined]
        sign = Sign(self._number, collectives, step, doing, round(time.monotonic() - since, 1))
        self._store.set(f"sign of life {self._ranks.rank}", json.dumps(vars(sign)))

    def _signs(self) -> list[Sign]:
        keys = [f"sign of life {rank}" for rank in range(self._ranks.world)]
        return [Sign(**json.loads(text)) for text in self._store.multi_get(keys)]


def behind(signs: list[Sign]) -> str:
    """The ranks that have entered fewer collectives than others, in words; empty if there are none."""
    most = max(sign.collectives for sign in signs)
    return _named(signs, [rank for rank, sign in enumerate(signs) if sign.collectives < most])


def first_waiting(signs: list[Sign]) -> int:
    """The lowest rank that no other is ahead of."""
    most = max(sign.collectives for sign in signs)
    return next(rank for rank, sign in enumerate(signs) if sign.collectives == most)


def silent(before: list[Sign], after: list[Sign]) -> str:
    """The ranks that gave no sign in between, in words; empty if there are none."""
    pairs = enumerate(zip(before, after, strict=True))
    return _named(after, [rank for rank, (one, other) in pairs if one.number == other.number])


def _named(signs: list[Sign], ranks: list[int], most: int = 8) -> str:
    if not ranks:
        return ""
    places = [
        f"rank {rank} (step {signs[rank].step}, {signs[rank].doing} for {signs[rank].seconds:g} s)" for rank in ranks
    ]
    more = f" and {len(ranks) - most} more" if len(ranks) > most else ""
    return f"missing: {', '.join(places[:most])}{more}"


def _tell(words: str, aloud: bool) -> None:
    logging.getLogger("nt_pretrain").warning(words)
    if aloud:
        print(words, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
