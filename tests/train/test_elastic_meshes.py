"""What was saved on one mesh goes on on any other: tensors and topologies bit-identical, the same samples next.

All meshes of as many ranks share their processes, so that the whole matrix takes eight starts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nt_pretrain.checkpoint.load import load_tensors, newest_valid
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import Config, DataSection
from nt_pretrain.data.loader import TrainLoader
from nt_pretrain.data.position import Position
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.checkpoints import position_after
from nt_pretrain.train.state import TrainState, fresh_state, identity
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.conftest import Corpus
from tests.gloo import run_ranks
from tests.train.test_meshes import LENGTH, MESHES, UNITS, config_of, is_possible

pytestmark = pytest.mark.long

EVERY = {"alone": (1, {}), **MESHES}
WORLDS = sorted({world for world, _ in EVERY.values()})
STEPS = 4
UPDATE = 6
"""A step of the configuration at which topologies are updated."""


@dataclass(frozen=True)
class Snapshot:
    """Of a run on all ranks: hashes of every tensor, topology, how far it came, samples of the next batch."""

    tensors: dict[str, str]
    digest: str
    step: int
    tokens: int
    next_batch: list[list[int]]


def configuration(name: str, unit: str, corpus: Corpus) -> Config:
    config = config_of(unit, EVERY[name][1], precision="fp32", model={"vocab_size": 320})
    data = DataSection(
        path=str(corpus.data), tokenizer=str(corpus.tokenizer), sequence_length=LENGTH, workers=0, lanes=12
    )
    return config.model_copy(update={"data": data})


def names(unit: str, world: int) -> list[str]:
    return [name for name, (ranks, axes) in EVERY.items() if ranks == world and is_possible(unit, axes)]


def snapshot(state: TrainState, ranks: Ranks, tokens: torch.Tensor) -> Snapshot:
    """What all ranks together hold, and the sequences that they read next."""
    own = {}
    for name, tensor in state.checkpoint_tensors().items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        own[name] = hashlib.sha256(whole.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    told: list[tuple[dict[str, str], list[list[int]]]] = [({}, [])] * ranks.world
    dist.all_gather_object(told, (own, tokens.tolist() if ranks.counts else []))
    merged = {name: value for each, _ in told for name, value in each.items()}
    rows = sorted(row for _, part in told for row in part)
    return Snapshot(merged, state.digest(ranks), state.step, state.targets, rows)


def save_all(rank: int, world: int, configs: dict[str, Config], folder: Path) -> dict[str, Snapshot]:
    """On every mesh train some steps with an update, save, and read one batch more."""
    found = {}
    for name, config in configs.items():
        ranks = connect(config)
        state = fresh_state(config, ranks)
        batches = iter(TrainLoader(config, rank=ranks.data_rank, world=ranks.sizes.data, position=None))
        for step in range(1, STEPS + 1):
            batch = next(batches)
            update = step == STEPS - 1
            scores = growth_scores(state, config, ranks, UPDATE) if update else None
            inputs = Inputs.of_text(batch.tokens, batch.documents)
            losses = accumulate_gradients(state.model, config, inputs, ranks, scores)
            if update:
                change_topology(state, config, ranks, UPDATE, scores)
            apply_gradients(state.optimizer, state.layers, config, ranks, 1e-3)
            state.step, state.targets = step, state.targets + losses.targets
        facts = state.facts(ranks) | {"position": position_after(batch, ranks).to_json()}
        save(
            folder / name, STEPS, state.checkpoint_tensors(), facts, identity=identity(config, "x"), group=ranks.saving
        )
        found[name] = snapshot(state, ranks, next(batches).tokens)
    return found


def load_all(rank: int, world: int, configs: dict[str, Config], folder: Path) -> dict[tuple[str, str], Snapshot]:
    """On every mesh read what every other one saved."""
    found = {}
    for name, config in configs.items():
        ranks = connect(config)
        state = fresh_state(config, ranks)
        for source in sorted(path.name for path in folder.iterdir()):
            saved = newest_valid(folder / source, group=ranks.control)
            assert saved is not None and saved.skipped == []
            load_tensors(saved.path, state.checkpoint_tensors(), group=ranks.control)
            state.restore(saved.state, ranks)
            position = Position.from_json(saved.state["position"])
            loader = TrainLoader(config, rank=ranks.data_rank, world=ranks.sizes.data, position=position)
            found[source, name] = snapshot(state, ranks, next(iter(loader)).tokens)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("unit", UNITS)
def test_saved_on_every_mesh_and_read_on_every_other(unit: str, corpus: Corpus, tmp_path: Path) -> None:
    saved: dict[str, Snapshot] = {}
    for world in WORLDS:
        configs = {name: configuration(name, unit, corpus) for name in names(unit, world)}
        saved |= run_ranks(save_all, world, configs, tmp_path, timeout=200)[0]
    assert len({str(snapshot.next_batch) for snapshot in saved.values()}) == 1, "all read the same"
    for world in WORLDS:
        configs = {name: configuration(name, unit, corpus) for name in names(unit, world)}
        for found in run_ranks(load_all, world, configs, tmp_path, timeout=200):
            assert len(found) == len(configs) * len(saved)
            for (source, name), snapshot in found.items():
                assert snapshot == saved[source], f"saved on {source}, read on {name}"
