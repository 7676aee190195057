"""Networks for pictures of blocks: convolutions of which only active blocks exist train as masked ones do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nt_pretrain.config.checks import problems
from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.sparsity.schedule import is_update_step
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.plan import make_plan, render
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks

PICTURES, SIZE, STEPS = 8, 16, 5


@dataclass
class Trace:
    losses: list[float]
    digests: list[str]
    active: int


def tiny(backend: str = "block", balance: str = "line", **sections: dict[str, Any]) -> Config:
    base: dict[str, Any] = {
        "model": {"family": "resnet20", "classes": 5, "heads": 2, "blocks_in_head": 3},
        "sparsity": {"density": 0.3, "update_every": 2, "prune_rate": 0.5, "unit": 16, "backend": backend},
        "train": {"steps": STEPS, "global_batch": PICTURES, "micro_batch": 4},
        "optim": {"lr": 1e-3, "clip": 1.0},
        "data": {"picture_size": SIZE, "picture_shorter": SIZE},
        "parallel": {"deterministic_reduce": True},
    }
    base["sparsity"]["balance"] = balance
    return Config.model_validate({name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})


def pictures(step: int) -> Inputs:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (PICTURES, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 5, (PICTURES,), generator=generator)
    return Inputs.of_labelled(pixels.contiguous(memory_format=torch.channels_last), labels)


def one_step(state: TrainState, config: Config, ranks: Ranks, step: int) -> list[float]:
    mine = PICTURES // ranks.sizes.data
    scores = growth_scores(state, config, ranks, step)
    batch = pictures(step).part(ranks.data_rank * mine, mine)
    losses = accumulate_gradients(state.model, config, batch, ranks, scores)
    if is_update_step(config, step):
        change_topology(state, config, ranks, step, scores)
    apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr)
    return losses.per_head


def train_rank(rank: int, world: int, config: Config) -> Trace:
    ranks = connect(config)
    state = fresh_state(config, ranks)
    trace = Trace([], [state.digest(ranks)], sum(x.active * x.unit**2 for x in state.budgets.values()))
    for step in range(1, STEPS + 1):
        trace.losses += one_step(state, config, ranks, step)
        trace.digests.append(state.digest(ranks))
    return trace


@pytest.mark.timeout(240)
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_losses_are_the_masked_ones_over_updates(precision: str) -> None:
    """In fp64 in plain torch, on two ranks; in fp32 by the compiled kernels, where they can be had."""
    train = {"train": {"precision": precision}}
    (masked,) = run_ranks(train_rank, 1, tiny("masked", **train))
    blocks = run_ranks(train_rank, 2 if precision == "fp64" else 1, tiny(**train))[0]
    assert len(set(masked.digests)) == 3, "two topology updates"
    assert blocks.digests == masked.digests and blocks.active == masked.active
    assert blocks.losses == pytest.approx(masked.losses, rel=1e-10 if precision == "fp64" else 5e-6)


def test_the_plan_names_what_blocks_do_not_fit() -> None:
    config = tiny()
    assert problems(config) == []
    plan = make_plan(config, 1)
    stem, output = 16 * 3 * 9, 2 * 5 * 64
    assert f"no blocks of 16 fit: stem, output     {stem + output:,}" in render(plan, config)
    assert 0.3 < plan.flops_per_sample_active / plan.flops_per_sample_dense < 0.7, "the dense stem sees most pixels"
    single = tiny("masked", "layer", sparsity={"unit": 1})
    assert "no blocks" not in render(make_plan(single, 1), single)


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [
        ({"unit": 128}, "no convolution has channels that are divisible into blocks of 128.* choose a smaller one"),
        ({"group_density": {"output": 0.5}}, r"group_density.output: has no effect, since sparsity.unit: 16 fits no"),
    ],
)
def test_what_leaves_nothing_to_be_sparse_is_said(sparsity: dict[str, Any], words: str) -> None:
    (found,) = problems(tiny(sparsity={"density": 0.3, "unit": 16, "backend": "block", "balance": "line"} | sparsity))
    assert re.search(words, found), found
