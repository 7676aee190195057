"""Ranks that must hold the same topology are compared: replicas, and for blocks all ranks of a layer's part."""

from __future__ import annotations

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
    ("unit", "axes", "name", "sides"),
    [
        ("blocks", {}, "heads.1.blocks.0.ffn.up.weight", "ranks 0, 1, 3; ranks 2"),
        ("weights", {"replicate": 2}, "trunk.blocks.0.ffn.up.weight", "ranks 0, 1; ranks 2, 3"),
        ("weights", {"replicate": 2, "head": 2}, "heads.0.output.weight", "ranks 0; ranks 2"),
    ],
)
def test_a_rank_that_differs_is_named_on_all(unit: str, axes: dict[str, int], name: str, sides: str) -> None:
    config = config_of(unit, axes, precision="fp32")
    assert len(set(run_ranks(_digest, 4, config, -1, name))) == 1
    for words in run_ranks(_digest, 4, config, 2, name):
        assert words.startswith("1 of the layers differ between ranks that must hold the same topology, the first ")
        assert f"{name} (2 versions: {sides})" in words
