"""What fails on one rank fails on all, with the same words, so that none waits for one that has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nt_pretrain.data.errors import DataError
from nt_pretrain.parallel.collectives import reduce_over
from nt_pretrain.parallel.mesh import Ranks

Value = TypeVar("Value")


def on_all(ranks: Ranks, action: Callable[[], Value]) -> Value:
    """Run ``action``, which reads data, on every rank; returns this rank's value. Collective.

    Raises:
        DataError: on every rank, if any rank had one; it says which.
    """
    return on_all_counted(ranks, action, lambda value: [], 0)[0]


def on_all_counted(
    ranks: Ranks, action: Callable[[], Value], count: Callable[[Value], list[int]], length: int
) -> tuple[Value, list[int]]:
    """As :func:`on_all`, with the sums over all ranks of the ``length`` numbers that ``count`` finds in their values.

    It costs no collective of its own.
    """
    made: list[Value] = []
    problem = ""
    try:
        made.append(action())
    except DataError as error:
        problem = str(error)
    told = torch.tensor([bool(problem), *(count(made[0]) if made else [0] * length)], dtype=torch.int64)
    reduce_over(told, ranks.control)
    failed, *sums = told.tolist()
    if failed:
        raise DataError(_words(problem, ranks))
    return made[0], sums


def _words(problem: str, ranks: Ranks) -> str:
    texts: list[Any] = [None] * ranks.world
    dist.all_gather_object(texts, problem, group=ranks.control)
    where: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        if text:
            where.setdefault(text, []).append(rank)
    return "\n".join(
        text if len(at) == ranks.world else f"{text}\n(on rank {', '.join(map(str, at))} of {ranks.world})"
        for text, at in where.items()
    )
