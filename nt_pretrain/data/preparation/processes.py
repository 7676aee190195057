"""Work for several processes: done by whichever is free, told as it goes, ended together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_bool, c_int64
from multiprocessing.sharedctypes import Synchronized

from nt_pretrain.data.errors import DataError

Advance = Callable[[int], None]
"""Told of units of work that are done, often."""
Task = Callable[[Advance], None]
"""A piece of work. What it writes appears whole or not at all; it can be sent to another process."""
_SECONDS_BETWEEN_LOOKS = 0.2


class Stopped(Exception):
    """The work was given up elsewhere; raised where a task tells of its progress."""


def work_through(tasks: Sequence[Task], workers: int, advance: Advance) -> None:
    """Do every task, in at most ``workers`` processes; in this one if there is work for one only.

    When a task fails, or at Ctrl-C, the others end as soon as they tell of their progress.

    Raises:
        DataError: of a task; or a process was killed.
    """
    count = min(workers, len(tasks))
    if count <= 1:
        for task in tasks:
            task(advance)
        return
    with _interrupt_noted() as interrupted, _processes(count) as (pool, done):
        waiting: set[Future[None]] = {pool.submit(_work, task) for task in tasks}
        told = 0
        try:
            # The pool begins to watch a process only when something comes after that was started (Python 3.11 to 3.13):
            # one that is killed before would never be missed.
            after = pool.submit(_nothing)
            while waiting:
                if after.done():
                    after = pool.submit(_nothing)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                ended, waiting = wait(waiting, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                now = done.get_obj().value
                advance(now - told)
                told = now
        except BrokenProcessPool:
            raise DataError(
                "a process was killed, probably by the system for want of memory. What is finished is kept; run the "
                "command again with fewer --workers"
            ) from None


@contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Ctrl-C only sets the event that is yielded.

    Python raises KeyboardInterrupt wherever it happens to be. Inside ``wait`` that is amid taking the locks of all
    futures, those taken are never given back, and the pool cannot end.
    """
    noted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Left alone where the command runs in the background of a script, which ignores Ctrl-C, and off the main thread.
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, lambda number, frame: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _processes(count: int) -> Iterator[tuple[ProcessPoolExecutor, Synchronized[int]]]:
    context = multiprocessing.get_context("forkserver")
    # A process that is killed may hold a lock for ever: this one never takes any.
    done, stop = context.Value(c_int64, 0), context.RawValue(c_bool, False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_settle, initargs=(done, stop))
    try:
        yield pool, done
    except BaseException:
        stop.value = True
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


_shared: tuple[Synchronized[int], c_bool] | None = None
"""In a process of the pool: units done by all of them, and whether to stop."""


def _work(task: Task) -> None:
    task(_advance)


def _nothing() -> None:
    """A task that is done at once."""


def _advance(units: int) -> None:
    assert _shared is not None, "runs in processes of the pool only"
    done, stop = _shared
    if stop.value:
        raise Stopped
    with done.get_lock():
        done.value += units


def _settle(done: Synchronized[int], stop: c_bool) -> None:
    global _shared
    _shared = done, stop
    # Ctrl-C reaches every process of a terminal; only the first decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End when the command was killed: nobody else would end this process, and what it writes is atomic."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in processes of the pool only"
    parent.join()
    os._exit(1)
