"""Every mesh trains the same model: {shard, replicate, head, tensor} against one process, on real ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import Config, ModelSection, OptimSection, ParallelSection, SparsitySection, TrainSection
from nt_pretrain.counter_random import key_of, normal
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.sparsity.schedule import is_update_step
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks

SEQUENCES, LENGTH, VOCABULARY, STEPS = 12, 16, 96, 20
"""Sequences divide among 1, 2, 3 and 4 readers in micro-batches of 3, 3, 4 and 3."""
MESHES: dict[str, tuple[int, dict[str, int]]] = {
    "2 shard": (2, {}),
    "4 shard": (4, {}),
    "2 replicate x 2 shard": (4, {"replicate": 2}),
    "2 shard x 2 tensor": (4, {"tensor": 2}),
    "3 head": (3, {"head": 3}),
    "2 shard x 2 head": (4, {"head": 2}),
    "2 head x 2 tensor": (4, {"head": 2, "tensor": 2}),
}
UNITS: dict[str, dict[str, Any]] = {
    "weights": {"unit": 1},
    "blocks": {"unit": 16, "scope": "no_vocab"},
    # Only the active blocks exist, also of the embedding and the output layers.
    "sparse": {"unit": 16, "backend": "block", "balance": "line"},
    # Only the active weights exist; tensor ranks could not share them equally.
    "single": {"unit": 1, "backend": "block"},
}
WIDE = {"hidden": 64, "intermediate": 96, "vocab_size": 96}
"""Tensor ranks share out whole lines of blocks: those of keys and values, 32 wide, are two."""


def config_of(unit: str, mesh: dict[str, int], *, precision: str = "fp64", **sections: dict[str, Any]) -> Config:
    model = dict(vocab_size=VOCABULARY, hidden=32, intermediate=48, layers=2, attention_heads=4, kv_heads=2, heads=6)
    micro = 4 if mesh.get("head") == 3 else 3
    sparsity = dict(density=0.5, update_every=6, prune_rate=0.3, drop="soft_magnitude")
    return Config(
        model=ModelSection(
            **model | {"blocks_in_head": 1} | (WIDE if unit == "sparse" else {}) | sections.get("model", {})
        ),
        sparsity=SparsitySection(**sparsity | UNITS[unit]),
        train=TrainSection(steps=STEPS, global_batch=SEQUENCES, micro_batch=micro, precision=precision, loss_chunk=7),
        optim=OptimSection(lr=3e-3, clip=0.5, weight_decay=0.1),
        parallel=ParallelSection(**mesh | sections.get("parallel", {})),
    )


def is_possible(unit: str, axes: dict[str, int]) -> bool:
    return unit != "single" or "tensor" not in axes


def is_long(unit: str, mesh: str, axes: dict[str, int]) -> bool:
    """Of what exists only where it is active, two meshes are tested every time."""
    active_only = unit in ("sparse", "single")
    return (unit != "weights" and "tensor" in axes) or (active_only and mesh not in ("2 replicate x 2 shard", "3 head"))


MATRIX = [
    # Tensor ranks take ten times as long as others; their second unit is tested with what is long.
    pytest.param(unit, mesh, marks=[pytest.mark.long] if is_long(unit, mesh, axes) else [])
    for unit in UNITS
    for mesh, (_, axes) in MESHES.items()
    if is_possible(unit, axes)
]


@dataclass
class Outcome:
    """What a run did; tensors are whole, by name."""

    first_weights: dict[str, Tensor]
    first_topology: str
    losses: list[list[float]]
    norms: list[float]
    digests: list[str]
    weights: dict[str, Tensor]


def whole(state: TrainState) -> dict[str, Tensor]:
    """All weights of the model on every rank."""
    own = {name: value.full_tensor().detach() for name, value in state.parameters.items()}  # type: ignore[attr-defined]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return {name: value for each in everyone for name, value in each.items()}


def batch(step: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """This rank's part of the global batch of a step: tokens and documents [S, T + 1], some padded."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    documents = torch.zeros_like(tokens)
    documents[3, 9:] = -1
    each = SEQUENCES // ranks.sizes.data
    mine = slice(ranks.data_rank * each, (ranks.data_rank + 1) * each)
    return tokens[mine], documents[mine]


def train(rank: int, world: int, config: Config) -> Outcome:
    ranks = connect(config)
    state = fresh_state(config, ranks)
    first = whole(state), state.digest(ranks)
    losses, norms, digests = [], [], []
    for step in range(1, STEPS + 1):
        scores = growth_scores(state, config, ranks, step)
        found = accumulate_gradients(state.model, config, Inputs.of_text(*batch(step, ranks)), ranks, scores)
        if is_update_step(config, step):
            change_topology(state, config, ranks, step, scores)
        norms.append(apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr))
        losses.append(found.per_head)
        digests.append(state.digest(ranks))
    return Outcome(*first, losses, norms, digests, whole(state))


def far(one: Any, other: Any) -> float:
    """Largest difference relative to the largest value."""
    a, b = (torch.as_tensor(each, dtype=torch.float64) for each in (one, other))
    return float((a - b).abs().max() / b.abs().max())


ALONE: dict[tuple[str, str], Outcome] = {}


def alone(unit: str, precision: str) -> Outcome:
    key = unit, precision
    if key not in ALONE:
        ALONE[key] = run_ranks(train, 1, config_of(unit, {}, precision=precision), timeout=120)[0]
    return ALONE[key]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("unit", "mesh"), MATRIX)
def test_twenty_steps_in_fp64_are_those_of_one_process(unit: str, mesh: str) -> None:
    world, axes = MESHES[mesh]
    expected = alone(unit, "fp64")
    assert len(set(expected.digests)) == 4, "three topology updates"
    for found in run_ranks(train, world, config_of(unit, axes), timeout=200)[:: world - 1]:
        assert found.first_weights.keys() == expected.first_weights.keys()
        assert all(torch.equal(found.first_weights[name], w) for name, w in expected.first_weights.items())
        assert (found.first_topology, found.digests) == (expected.first_topology, expected.digests)
        assert far(found.losses, expected.losses) < 1e-12
        assert far(found.norms, expected.norms) < 1e-12
        assert max(far(found.weights[name], w) for name, w in expected.weights.items()) < 1e-12


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("axes", "precision"), [({"head": 2}, "fp64"), ({"replicate": 2}, "bf16")])
def test_a_deep_ensemble_of_blocks(axes: dict[str, int], precision: str) -> None:
    """No trunk: heads own their embeddings."""
    config = config_of("sparse", axes, precision=precision, model={"blocks_in_head": 2, "heads": 2})
    single = config_of("sparse", {}, precision=precision, model={"blocks_in_head": 2, "heads": 2})
    (expected,), found = run_ranks(train, 1, single, timeout=140), run_ranks(train, 2, config, timeout=140)
    assert found[0].first_topology == expected.first_topology
    assert far(found[0].losses, expected.losses) < (1e-12 if precision == "fp64" else 2e-2)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mesh", MESHES)
def test_fp32_stays_close_until_a_near_tie_may_flip(mesh: str) -> None:
    world, axes = MESHES[mesh]
    expected = alone("weights", "fp32")
    found = run_ranks(train, world, config_of("weights", axes, precision="fp32"), timeout=200)[-1]
    assert far(found.losses[:6], expected.losses[:6]) < 1e-5


def update_once(rank: int, world: int, config: Config) -> str:
    """The topology after an update from weights and gradients that are functions of name and element."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    for layer in state.layers:
        parameter, held = state.parameters[layer.name], layer.held
        index = held.rows[:, None] * held.total_columns + held.columns
        gradient = parameter.detach().clone()
        values = normal(key_of("gradient", layer.name), index) * (held.columns % 3 > 0)
        gradient.to_local().copy_(values)  # type: ignore[attr-defined]
        parameter.grad = gradient
    change_topology(state, config, ranks, 6, None)
    return state.digest(ranks)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("unit", ["weights", pytest.param("blocks", marks=pytest.mark.long)])
def test_equal_inputs_give_equal_topologies_on_every_mesh(unit: str) -> None:
    expected = run_ranks(update_once, 1, config_of(unit, {}, precision="fp32"))[0]
    for world, axes in MESHES.values():
        assert set(run_ranks(update_once, world, config_of(unit, axes, precision="fp32"))) == {expected}, axes


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", [{"blocks_in_head": 2}, {"blocks_in_head": 0, "document_mask": True}])
@pytest.mark.parametrize("mesh", ["2 shard x 2 tensor", "3 head", "2 head x 2 tensor"])
def test_every_cut_of_the_model_trains_on_every_axis(mesh: str, model: dict[str, Any]) -> None:
    world, axes = MESHES[mesh]
    expected = run_ranks(train, 1, config_of("weights", {}, model=model), timeout=120)[0]
    found = run_ranks(train, world, config_of("weights", axes, model=model), timeout=200)[0]
    assert found.digests == expected.digests
    assert max(far(found.weights[name], w) for name, w in expected.weights.items()) < 1e-11


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mesh", ["4 shard", "2 replicate x 2 shard"])
def test_data_parallel_meshes_agree_bit_for_bit_with_deterministic_reduce(mesh: str) -> None:
    world, axes = MESHES[mesh]
    exact = {"deterministic_reduce": True}
    expected = run_ranks(train, 1, config_of("weights", {}, precision="fp32", parallel=exact), timeout=120)[0]
    for found in run_ranks(train, world, config_of("weights", axes, precision="fp32", parallel=exact), timeout=200):
        assert (found.losses, found.norms, found.digests) == (expected.losses, expected.norms, expected.digests)
        assert all(torch.equal(found.weights[name], w) for name, w in expected.weights.items())
