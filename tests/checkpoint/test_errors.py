"""What fails on one rank fails on all, with one message."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from nt_pretrain.checkpoint.errors import CheckpointError, describe, on_first, together
from tests.gloo import run_ranks

pytestmark = pytest.mark.timeout(60)


def ask(rank: int, world: int, failing: list[int]) -> str | list[int]:
    def action() -> int:
        if rank in failing:
            raise CheckpointException("inside torch", {rank: (OSError("no space"), None)})  # type: ignore[dict-item]
        return rank * 10

    try:
        return together(dist.group.WORLD, "cannot save", action)
    except CheckpointError as error:
        return str(error)


def ask_first(rank: int, world: int) -> tuple[int, int]:
    calls = []
    return on_first(dist.group.WORLD, "cannot list", lambda: calls.append(rank) or 42), len(calls)


@pytest.mark.parametrize(
    ("failing", "answer"),
    [
        ([], [0, 10, 20]),
        ([1], "cannot save: OSError: no space (on rank 1)"),
        ([1, 2], "cannot save: OSError: no space (on 2 ranks, first 1)"),
        ([0, 1, 2], "cannot save: OSError: no space"),
    ],
)
def test_all_return_or_all_raise(failing: list[int], answer: str | list[int]) -> None:
    assert run_ranks(ask, 3, failing) == [answer] * 3


def test_first_acts_and_all_know() -> None:
    assert run_ranks(ask_first, 2) == [(42, 1), (42, 0)]


def test_the_same_cause_on_several_ranks_is_said_once() -> None:
    causes = {rank: (CheckpointError("folder is gone"), None) for rank in range(3)}
    assert describe(CheckpointException("inside torch", causes)) == "folder is gone"  # type: ignore[arg-type]
