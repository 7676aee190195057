"""Topologies that every rank holds whole are compared between ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.topology import Held, empty_layer
from nt_pretrain.sparsity.update import TopologyError, draw, topology_digest
from tests.gloo import run_ranks


def _digest(rank: int, world: int, flip_on: int | None) -> str:
    rows = torch.arange(64).chunk(world)[rank]
    layers = [
        empty_layer(name, LayerBudget((64, 32), 8, 32, 16), Held(rows, torch.arange(32), 32)) for name in ("a", "b")
    ]
    draw(layers, seed=0, group=dist.group.WORLD)
    if rank == flip_on:
        layers[1].active.copy_(layers[1].active.flip(0))
    try:
        return topology_digest(layers, dist.group.WORLD)
    except TopologyError as error:
        return str(error)


@pytest.mark.parametrize("flip_on", [0, 1])
def test_a_rank_with_another_table_of_blocks_is_noticed_on_all(flip_on: int) -> None:
    good = run_ranks(_digest, 2, None)
    assert good[0] == good[1] == run_ranks(_digest, 1, None)[0]
    for words in run_ranks(_digest, 2, flip_on):
        assert words == "ranks hold different topologies of b; go on from the last checkpoint"
