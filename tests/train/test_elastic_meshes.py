"""What was saved on one mesh goes on on any other: tensors and topologies bit-identical, the same samples next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.checkpoint.load import load_tensors, newest_valid
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import TrainState, fresh_state, identity
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks
from tests.train.test_meshes import MESHES, UNITS, batch, config_of
from tests.train.worlds import change

pytestmark = pytest.mark.long

EVERY = {"alone": (1, {}), **MESHES}


def everything(state: TrainState) -> dict[str, Tensor]:
    """Weights, moments and flags of the whole model."""
    own = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in state.checkpoint_tensors().items()
    }
    told: list[dict[str, Tensor]] = [{}] * dist.get_world_size()
    dist.all_gather_object(told, own)
    return {name: value for each in told for name, value in each.items()}


def saved(rank: int, world: int, config: Config, folder: Path) -> tuple[dict[str, Tensor], str]:
    """Train seven steps with an update, and save."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    for step in range(1, 8):
        accumulate_gradients(state.model, config, *batch(step, ranks), ranks)
        if step == 6:
            change(state, config, ranks, step)
        apply_gradients(state.optimizer, state.layers, config, ranks, 1e-3)
        state.step = step
    tensors, facts = state.checkpoint_tensors(), state.facts(ranks)
    save(folder, 7, tensors, facts, identity=identity(config, "none"), group=ranks.saving)
    return everything(state), state.digest(ranks)


def loaded(rank: int, world: int, config: Config, folder: Path) -> tuple[dict[str, Tensor], str, int]:
    """What a fresh state holds after reading the checkpoint."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    found = newest_valid(folder, group=ranks.control)
    assert found is not None and found.skipped == []
    load_tensors(found.path, state.checkpoint_tensors(), group=ranks.control)
    state.restore(found.state)
    return everything(state), state.digest(ranks), state.step


@pytest.mark.timeout(300)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "source", ["4 shard", "2 replicate x 2 shard", "2 shard x 2 tensor", "3 head", "2 head x 2 tensor"]
)
def test_saved_on_one_mesh_and_read_on_every_other(source: str, unit: str, tmp_path: Path) -> None:
    world, axes = EVERY[source]
    expected, digest = run_ranks(saved, world, config_of(unit, axes, precision="fp32"), tmp_path, timeout=120)[0]
    for name, (world, axes) in EVERY.items():
        found = run_ranks(loaded, world, config_of(unit, axes, precision="fp32"), tmp_path, timeout=120)
        for tensors, read, step in found[:: max(1, world - 1)]:
            assert (read, step) == (digest, 7), name
            assert tensors.keys() == expected.keys()
            different = [key for key, value in expected.items() if not torch.equal(tensors[key], value)]
            assert not different, (name, different[:3])
