"""Ranks that must hold the same topology are compared: replicas, and for blocks all ranks of a layer's part."""

from __future__ import annotations

import re

import pytest

from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.topology import TopologyError
from tests.gloo import run_ranks
from tests.train.test_meshes import config_of


def _digest(rank: int, world: int, config: Config, flip_on: int, name: str) -> str:
    ranks = connect(config)
    state = fresh_state(config, ranks)
    for layer in state.layers:
        if rank == flip_on and layer.name == name:
            layer.active.copy_(~layer.active)
    try:
        return state.digest(ranks)
    except TopologyError as error:
        return str(error)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("unit", "axes", "name", "others"),
    [
        ("blocks", {}, "heads.1.blocks.0.ffn.up.weight", "0, 1, 3"),
        ("weights", {"replicate": 2}, "trunk.blocks.0.ffn.up.weight", "0"),
        ("weights", {"replicate": 2, "head": 2}, "heads.0.output.weight", "0"),
    ],
)
def test_a_rank_that_differs_is_named_on_all(unit: str, axes: dict[str, int], name: str, others: str) -> None:
    config = config_of(unit, axes, precision="fp32")
    assert len(set(run_ranks(_digest, 4, config, -1, name))) == 1
    for words in run_ranks(_digest, 4, config, 2, name):
        assert words.startswith("1 of the layers differ between ranks that must hold the same topology, the first ")
        assert re.search(
            rf"{name}: ranks {others} \([\d,]+ active units\) against ranks 2 \([\d,]+ active units\)\.", words
        )
