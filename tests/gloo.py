"""Runs a function on several real ranks: one process each, joined by a gloo process group.

Processes are forked from a server that has torch loaded already, so starting four of them costs a fraction of a second
and the process that runs pytest, with its threads, is never forked itself.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

# torch._dynamo is no mistake: the first DTensor of a process imports it, half a second on every rank otherwise.
PRELOADED = [
    *["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo", "torch.profiler"],
    *["torch.distributed.run", "nt_pretrain.train.run", "nt_pretrain.evaluation.run", "nt_pretrain.evaluation.target"],
]
GRACE_SECONDS = 2.0
"""How long the other ranks may go on to report their own error after the first one failed."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


@functools.cache
def start_server() -> None:
    """The server of this process has loaded everything; that takes seconds, which no timeout should count."""
    process = CONTEXT.Process(target=os.getpid)
    with one_thread():
        process.start()
    process.join()


class RanksFailed(AssertionError):
    """Some rank raised, died or did not finish.

    Attributes:
        failures: what happened, by rank: a traceback, a death with its exit code, or that the rank was still running.
    """

    def __init__(self, message: str, failures: dict[int, str]) -> None:
        super().__init__("\n".join([message, *(failures[rank] for rank in sorted(failures))]))
        self.failures = failures


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60) -> list[Any]:
    """Call ``function(rank, world_size, *args)`` on every rank of a new gloo group.

    Args:
        function: defined at the top level of a module, so that the ranks can import it.
        args: anything that can be pickled; the environment variables of the caller are passed on too.
        timeout: seconds for everything, also the timeout of collectives.

    Returns:
        What the function returned (pickled), in the order of ranks.

    Raises:
        RanksFailed: with the traceback of each rank that raised, or the ranks that were missing at the timeout. All
            processes started here are gone then.
    """
    assert world_size >= 1
    start_server()
    deadline = time.monotonic() + timeout
    work = pickle.dumps((function, args))
    processes: list[ForkServerProcess] = []
    ends: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        try:
            for rank in range(world_size):
                here, there = CONTEXT.Pipe()
                process = CONTEXT.Process(
                    target=_rank_main, args=(there, rank, world_size, folder, work, timeout, dict(os.environ))
                )
                with one_thread():
                    process.start()
                there.close()
                processes.append(process)
                ends.append(here)
            results, failures = _collect(processes, ends, deadline)
            if failures:
                raise RanksFailed(_summary(function, world_size, results, failures, timeout), failures)
            for process in processes:
                process.join(max(GRACE_SECONDS, deadline - time.monotonic()))
            return [results[rank] for rank in range(world_size)]
        finally:
            for process in processes:
                _kill(process)
            for end in ends:
                end.close()


def _collect(
    processes: list[ForkServerProcess], ends: list[Connection], deadline: float
) -> tuple[dict[int, Any], dict[int, str]]:
    """Results and failures by rank, until all have reported or time is up."""
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = {end: rank for rank, end in enumerate(ends)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for end in ready:
            assert isinstance(end, Connection)
            rank = waiting.pop(end)
            try:
                returned, value = pickle.loads(end.recv_bytes())
            except EOFError:
                processes[rank].join(GRACE_SECONDS)
                failures[rank] = f"rank {rank} died: {_how_it_ended(processes[rank])}"
            else:
                if returned:
                    results[rank] = value
                else:
                    failures[rank] = f"rank {rank} raised:\n{value}"
        if failures:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    for rank in waiting.values():
        failures[rank] = f"rank {rank} was still running"
    return results, failures


def _summary(
    function: Callable[..., Any], world_size: int, results: dict[int, Any], failures: dict[int, str], timeout: float
) -> str:
    missing = [rank for rank, text in failures.items() if text.endswith("still running")]
    failed = sorted(set(failures) - set(missing))
    name = f"{function.__module__}.{function.__qualname__} on {world_size} ranks"
    finished = f"ranks {sorted(results)} finished" if results else "none finished"
    if failed:
        return f"{name}: ranks {failed} failed, ranks {sorted(missing)} were missing, {finished}"
    return f"{name}: ranks {sorted(missing)} were missing after {timeout:g} s, {finished}"


def _how_it_ended(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}, no result"


def _kill(process: ForkServerProcess) -> None:
    """End a rank and the processes it started; they share the process group that the rank made for itself."""
    if process.is_alive() and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet the leader of a group: it has started nothing either
            process.kill()
    process.join()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """OpenMP reads the variable when torch is loaded, which is when the server starts, with the first process."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _rank_main(
    end: Connection, rank: int, world_size: int, folder: str, work: bytes, timeout: float, environment: dict[str, str]
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment, OMP_NUM_THREADS="1")
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that does not resolve must not matter
    threading.Thread(target=_leave_with_parent, args=(end,), daemon=True).start()
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(f"{folder}/store", world_size),
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout),
        )
        function, args = pickle.loads(work)
        answer = pickle.dumps((True, function(rank, world_size, *args)))
    except BaseException:  # SystemExit, and checkpoint errors of torch that are no Exception
        end.send_bytes(pickle.dumps((False, traceback.format_exc())))
        os._exit(1)
    end.send_bytes(answer)
    with contextlib.suppress(Exception):
        dist.barrier()  # nobody closes a connection that another rank still reads from
    # Not a normal exit: threads of gloo that are alive at interpreter shutdown may abort the process.
    os._exit(0)


def _leave_with_parent(end: Connection) -> None:
    """A rank whose test was killed would wait for a timeout of minutes; the end of the pipe tells it at once."""
    with contextlib.suppress(EOFError, OSError):
        end.recv_bytes()
    os.killpg(0, signal.SIGKILL)
