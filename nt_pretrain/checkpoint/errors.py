"""The error of this package, and how an outcome on one rank becomes the outcome on all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

Value = TypeVar("Value")


class CheckpointError(Exception):
    """A checkpoint cannot be written, read or used; the message is for people."""


# torch's CheckpointException is no Exception: "except Exception" would let it pass.
FAILURES = (Exception, CheckpointException)


def describe(error: BaseException) -> str:
    """One line for people: what went wrong, without the traceback."""
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, CheckpointException):
        causes = {describe(cause) for cause, _ in error.failures.values()}
        return "; ".join(sorted(causes))
    return f"{type(error).__name__}: {error}"


def together(group: dist.ProcessGroup | None, doing: str, action: Callable[[], Value]) -> list[Value]:
    """Run ``action`` on every rank; all ranks return or all raise, so none waits for one that has left.

    Args:
        group: gloo group (or one that has gloo for CPU tensors); None is the default group.
        doing: what is tried, for the message.

    Returns:
        The values of all ranks (pickled), in the order of ranks.

    Raises:
        CheckpointError: on every rank, with what happened on those that failed.
    """
    mine: tuple[Value | None, str | None]
    try:
        mine = (action(), None)
    except FAILURES as error:
        mine = (None, describe(error))
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, mine, group=group)
    failed: dict[str, list[int]] = {}
    for rank, (_, problem) in enumerate(outcomes):
        if problem is not None:
            failed.setdefault(problem, []).append(rank)
    if failed:
        where = "; ".join(problem + _where(ranks, len(outcomes)) for problem, ranks in failed.items())
        raise CheckpointError(f"{doing}: {where}" if doing else where)
    return [value for value, _ in outcomes]


def on_first(group: dist.ProcessGroup | None, doing: str, action: Callable[[], Value]) -> Value:
    """Run ``action`` on rank 0 only and give its value to all; errors as :func:`together`."""
    first = dist.get_rank(group) == 0
    value = together(group, doing, lambda: action() if first else None)[0]
    assert value is not None
    return value


def _where(ranks: list[int], world_size: int) -> str:
    if len(ranks) == world_size:
        return ""
    return f" (on rank {ranks[0]})" if len(ranks) == 1 else f" (on {len(ranks)} ranks, first {ranks[0]})"
