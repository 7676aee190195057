"""Errors that end a run: their exit codes and the words for people."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import psutil

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.observe.exitcodes import ExitCode, report_failure
from nt_pretrain.observe.first_cause import first_cause
from nt_pretrain.parallel.mesh import rank_of_launcher
from nt_pretrain.parallel.watchdog import Watchdog
from nt_pretrain.train.topology import TopologyError


class DivergedError(Exception):
    """Loss or gradient is no longer a finite number."""


class HangError(Exception):
    """A collective took longer than it may; the message names the ranks that are missing."""


class LostError(Exception):
    """A rank has left in the middle of a collective; the message says why if its log does."""


_KNOWN: dict[type[Exception], tuple[ExitCode, str]] = {
    DataError: (ExitCode.DATA, "data error"),
    CheckpointError: (ExitCode.CHECKPOINT, "checkpoint error"),
    DivergedError: (
        ExitCode.DIVERGED,
        "the run diverged (its last checkpoint is good; lower optim.lr or optim.clip)",
    ),
    ConfigErrors: (ExitCode.CONFIGURATION, "configuration error"),
    TopologyError: (ExitCode.TOPOLOGY, "topology error"),
}
_TIMED_OUT = ("Timed out waiting", "timed out after", "Watchdog caught collective operation timeout")
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def fail(code: int, message: str, *, on_every_rank: bool = False) -> int:
    """Say what ends a command; returns the exit code. What is wrong on all ranks alike is printed by rank 0 only."""
    report_failure(message)
    if on_every_rank or rank_of_launcher() == 0:
        print(message, file=sys.stderr)
    return code


def exit_code_of(error: Exception) -> int:
    """Exit code for an error that ends a run; 1 for one that nobody foresaw."""
    for kind, (code, _) in _KNOWN.items():
        if isinstance(error, kind):
            return int(code)
    return int(ExitCode.HANG) if is_hang(error) else 1


def is_hang(error: Exception) -> bool:
    """Whether a collective has timed out."""
    return isinstance(error, HangError) or _has(error, _TIMED_OUT)


def explained(error: Exception, config: Config, rank: int, watchdog: Watchdog, logs: Path) -> Exception:
    """The same error; one that only says that another rank is missing or gone is replaced by one that says why."""
    lost = _has(error, _LOST)
    if not is_hang(error) and not lost:
        return error
    missing = "" if lost else watchdog.missing()
    cause = first_cause(logs, since=psutil.Process().create_time(), is_consequence=_is_consequence) if rank == 0 else ""
    told = [each for each in (missing, f"the first cause: {cause}" if cause else "") if each]
    words = _lost(error, rank) if lost else _hung(error, rank, config.parallel.timeout_seconds)
    return (LostError if lost else HangError)("; ".join([words, *told]))


def _hung(error: Exception, rank: int, timeout_seconds: int) -> str:
    return (
        f"rank {rank} waited longer than parallel.timeout_seconds ({timeout_seconds}) for another rank, which hangs or "
        f"cannot be reached ({_first_line(error)})"
    )


def _lost(error: Exception, rank: int) -> str:
    return (
        f"rank {rank}: another rank has gone; its own words, here or under ranks/ in the run directory, say why "
        f"({_first_line(error)})"
    )


def _is_consequence(words: str) -> bool:
    return "another rank has gone" in words or "waited longer than parallel.timeout_seconds" in words


def is_told_alike(error: Exception) -> bool:
    """Whether all ranks have this error with the same words, so that one of them saying it is enough."""
    return isinstance(error, tuple(_KNOWN))


def words_of(error: Exception, *, rank: int, timeout_seconds: int) -> str:
    """What to tell people; a traceback only for an error that nobody foresaw."""
    for kind, (_, words) in _KNOWN.items():
        if isinstance(error, kind):
            return f"{words}: {error}"
    if isinstance(error, HangError | LostError):
        return str(error)
    if is_hang(error):
        return _hung(error, rank, timeout_seconds)
    if _has(error, _LOST):
        return _lost(error, rank)
    return f"rank {rank} failed:\n{''.join(traceback.format_exception(error))}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _has(error: Exception, signs: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
