"""Networks for pictures through the same step, topology, checkpoint and validation as text, on real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nt_pretrain.checkpoint.load import load_tensors
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.exchange import gathered, scattered_sum
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.sparsity.schedule import is_update_step, prune_rate
from nt_pretrain.train.state import TrainState, budgets_at, fresh_state, identity
from nt_pretrain.train.step import Losses, accumulate_gradients, apply_gradients
from nt_pretrain.train.topology import update_topology
from tests.gloo import run_ranks
from tests.train.worlds import hash_of

PICTURES, SIZE, STEPS = 8, 16, 4


def tiny(**sections: dict[str, Any]) -> Config:
    model = dict(family="resnet20", classes=5, heads=2, blocks_in_head=3)
    base: dict[str, Any] = {
        "model": model,
        "sparsity": {"density": 0.3, "update_every": 2, "prune_rate": 0.3},
        "train": {"steps": STEPS, "global_batch": PICTURES, "micro_batch": 2},
        "optim": {"lr": 1e-2, "clip": 1.0},
        "data": {"picture_size": SIZE, "picture_shorter": SIZE},
        "parallel": {"deterministic_reduce": True},
    }
    return Config.model_validate({name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})


def pictures(step: int) -> Inputs:
    """The global batch of a step; one picture could not be read."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (PICTURES, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 5, (PICTURES,), generator=generator)
    labels[5] = -100
    return Inputs.of_labelled(pixels.contiguous(memory_format=torch.channels_last), labels)


def one_step(state: TrainState, config: Config, ranks: Ranks, step: int) -> Losses:
    mine = PICTURES // ranks.sizes.data
    batch = pictures(step).part(ranks.data_rank * mine, mine)
    losses = accumulate_gradients(state.model, config, batch, ranks)
    if is_update_step(config, step):
        state.budgets = budgets_at(config, shapes_of(config.model), step)
        update_topology(
            state.layers, state.layer_tensors(), config, ranks, targets=state.budgets,
            prune_rate=prune_rate(config, step), step=step,
        )  # fmt: skip
    apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr)
    return losses


def train_rank(rank: int, world: int, config: Config) -> dict[str, Any]:
    """Weights, topology and losses that a training run ends with, and its batch statistics, as every rank sees them."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    losses = [one_step(state, config, ranks, step).per_head for step in range(1, config.total_steps + 1)]
    return {
        "weights": hash_of(list(state.parameters.values())),
        "digest": state.digest(ranks),
        "losses": losses,
        "statistics": {name: each.clone() for name, each in statistics_of(state.model).items()},
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    (found,) = run_ranks(train_rank, 1, tiny())
    return found


@pytest.mark.timeout(120)
def test_two_and_four_ranks_train_the_same_bits_as_one(alone: dict[str, Any]) -> None:
    """Micro-batches of the same pictures have the same batch statistics, whoever computes them."""
    assert alone["losses"][0] != alone["losses"][-1]
    for world in (2, 4):
        for found in run_ranks(train_rank, world, tiny()):
            assert found["weights"] == alone["weights"] and found["digest"] == alone["digest"]
            assert found["losses"] == alone["losses"]


@pytest.mark.timeout(120)
def test_running_statistics_are_the_same_on_all_ranks_and_not_lost(alone: dict[str, Any]) -> None:
    first, second = run_ranks(train_rank, 2, tiny())
    trunk_norms, head_norms = 1 + 2 * 6 + 1, 2 * 3 + 1
    assert len(first["statistics"]) == 2 * (trunk_norms + 2 * head_norms)
    for name, each in first["statistics"].items():
        assert torch.equal(each, second["statistics"][name]), name
        moved = each - (1.0 if name.endswith("var") else 0.0)
        assert each.isfinite().all() and moved.abs().sum() > 0, name
        # One rank averages its four micro-batches one after another, two ranks two each: alike, but half as far.
        same_way = (moved * (alone["statistics"][name] - (1.0 if name.endswith("var") else 0.0))).sum()
        assert same_way > 0, name


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("world", "parallel"), [(2, {}), (2, {"head": 2}), (4, {"replicate": 2}), (4, {"head": 2})])
def test_synchronised_norms_see_the_same_on_every_mesh(world: int, parallel: dict[str, int]) -> None:
    """In fp64: with all pictures in one micro-batch over the ranks, every mesh trains what one rank does."""
    sections = {"train": {"precision": "fp64", "steps": 2}, "sparsity": {"density": 1.0}, "optim": {"clip": 0.0}}
    common = {"batch_norm": "all", "deterministic_reduce": False}
    whole = tiny(**sections | {"train": sections["train"] | {"micro_batch": PICTURES}, "parallel": common})
    (expected,) = run_ranks(train_rank, 1, whole)
    divided = sections["train"] | {"micro_batch": PICTURES // world}
    for found in run_ranks(train_rank, world, tiny(**sections | {"train": divided, "parallel": common | parallel})):
        for ours, theirs in zip(found["losses"], expected["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9)
        for name, each in found["statistics"].items():
            assert torch.allclose(each, expected["statistics"][name], rtol=1e-6, atol=1e-9), name


def recomputed_rank(rank: int, world: int) -> None:
    plain, again = (
        train_rank(rank, world, tiny(parallel={"activation_checkpoint": what, "deterministic_reduce": True}))
        for what in ("none", "full")
    )
    assert plain["weights"] == again["weights"] and plain["losses"] == again["losses"]
    for name, each in plain["statistics"].items():
        assert torch.equal(each, again["statistics"][name]), name


@pytest.mark.timeout(120)
def test_computing_activations_again_moves_running_statistics_once() -> None:
    run_ranks(recomputed_rank, 1)


def saving_rank(rank: int, world: int, folder: str) -> dict[str, torch.Tensor]:
    config = tiny()
    ranks = connect(config)
    state = fresh_state(config, ranks)
    one_step(state, config, ranks, 1)
    save(Path(folder), 1, state.checkpoint_tensors(), state.facts(ranks), identity=identity(config, ""), group=None)
    return {name: each.clone() for name, each in statistics_of(state.model).items()}


def loading_rank(rank: int, world: int, folder: str) -> tuple[dict[str, torch.Tensor], str]:
    config = tiny()
    ranks = connect(config)
    state = fresh_state(config, ranks)
    load_tensors(Path(folder) / "step_00000001", state.checkpoint_tensors(), group=ranks.control)
    return dict(statistics_of(state.model)), state.digest(ranks)


@pytest.mark.timeout(120)
def test_a_checkpoint_of_two_ranks_is_read_by_one_with_its_statistics(tmp_path: Path) -> None:
    saved = run_ranks(saving_rank, 2, str(tmp_path))[0]
    ((loaded, _),) = run_ranks(loading_rank, 1, str(tmp_path))
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[name], loaded[name]) for name in saved)


def bf16_rank(rank: int, world: int) -> tuple[list[list[float]], list[list[float]]]:
    found = []
    for precision in ("fp32", "bf16"):
        config = tiny(train={"precision": precision})
        ranks = connect(config)
        state = fresh_state(config, ranks)
        kinds: set[torch.dtype] = set()
        logits: set[torch.dtype] = set()
        for module in state.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda _, given, out, logits=logits: logits.add(out.dtype))
            if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
                module.register_forward_hook(lambda _, given, out, kinds=kinds: kinds.add(out.dtype))
        found.append([one_step(state, config, ranks, step).per_head for step in range(1, STEPS + 1)])
        assert logits == {torch.float32}, "bf16 logits tie, and so does the loss"
        assert kinds == {torch.float32 if precision == "fp32" else torch.bfloat16}
        stored = [
            *state.parameters.values(),
            *statistics_of(state.model).values(),
            *state.optimizer.gradients().values(),
        ]
        assert {each.dtype for each in stored} == {torch.float32}
    return found[0], found[1]


@pytest.mark.timeout(120)
def test_bf16_computes_in_bf16_and_keeps_everything_in_fp32() -> None:
    ((wide, narrow),) = run_ranks(bf16_rank, 1)
    assert wide != narrow
    assert narrow[0] == pytest.approx(wide[0], rel=0.02)
    # Every step adds to what rounding has changed; four on eight pictures are no place to be strict.
    assert narrow[-1] == pytest.approx(wide[-1], rel=0.3)


def gathered_rank(rank: int, world: int) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(rank))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = maps.contiguous(memory_format=layout)
        whole = gathered(x, 0, dist.group.WORLD)
        assert whole.is_contiguous(memory_format=layout) and torch.equal(whole[2 * rank : 2 * rank + 2], maps)
        own = scattered_sum(whole, 0, dist.group.WORLD)
        assert own.is_contiguous(memory_format=layout) and torch.allclose(own, world * maps)


@pytest.mark.timeout(60)
def test_maps_keep_their_layout_on_the_way_to_other_ranks() -> None:
    run_ranks(gathered_rank, 2)
