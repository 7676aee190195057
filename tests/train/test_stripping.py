"""Stripping beside training: the same on every mesh, for good, on training batches only, through a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nt_pretrain.checkpoint.load import Found
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.forward import Inputs, run_trunk
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.parallel.shard import own_heads
from nt_pretrain.sparsity.schedule import is_update_step
from nt_pretrain.sparsity.stripping import is_stripping_step, window_position
from nt_pretrain.train.change import change_topology
from nt_pretrain.train.resume import refuse_other_model
from nt_pretrain.train.state import TrainState, fresh_state, identity
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from nt_pretrain.train.stripping import readings_of, strip
from tests.conftest import Corpus, command
from tests.gloo import run_ranks
from tests.train import launches, method_runs
from tests.train.test_meshes import SEQUENCES, VOCABULARY

LETHAL = 0.2
"""A learning rate at which the units of a small net die by the dozen."""


def config_of(mesh: dict[str, int] | None = None, **sections: dict[str, Any]) -> Config:
    """A net of which half a part is trunk, half heads; sections override."""
    base: dict[str, dict[str, Any]] = {
        "run": {"device": "cpu", "threads_per_rank": 1},
        "model": dict(
            vocab_size=VOCABULARY, hidden=32, intermediate=64, layers=4, attention_heads=4, heads=2, blocks_in_head=2,
            ffn="relu2",
        ),
        "stripping": {"every_steps": 5},
        "optim": {"lr": LETHAL},
        "train": {"steps": 10, "global_batch": SEQUENCES, "micro_batch": 6},
        "parallel": mesh or {},
    }  # fmt: skip
    return Config.model_validate({name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})


def batch(step: int, ranks: Ranks) -> Inputs:
    """This rank's part of the global batch of a step: sequences that count up, each by its own stride."""
    generator = torch.Generator().manual_seed(step)
    first, stride = (torch.randint(1, high, (SEQUENCES, 1), generator=generator) for high in (VOCABULARY, 5))
    tokens = (first + torch.arange(17) * stride) % VOCABULARY
    each = SEQUENCES // ranks.sizes.data
    mine = slice(ranks.data_rank * each, (ranks.data_rank + 1) * each)
    return Inputs.of_text(tokens[mine], torch.zeros_like(tokens[mine]))


@dataclass
class Trace:
    """What a run did at each removal; ``digests`` are those of every step."""

    active: list[Tensor] = field(default_factory=list)
    dead: list[dict[str, Tensor]] = field(default_factory=list)
    removed: list[dict[str, int]] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def one_step(
    state: TrainState, config: Config, ranks: Ranks, step: int, trace: Trace, lr: float, inputs: Inputs | None = None
) -> None:
    """As the loop makes it."""
    activity = state.activity
    assert activity is not None
    if position := window_position(config, step):
        if position == 1:
            activity.restart()
        activity.listen(state.model)
    accumulate_gradients(state.model, config, inputs or batch(step, ranks), ranks)
    activity.stop()
    if is_stripping_step(config, step):
        found = strip(state, config, ranks)
        trace.active.append(activity.active.clone())
        trace.dead.append(found.dead)
        trace.removed.append(found.removed)
        trace.values.append(readings_of(found, state, config))
    if is_update_step(config, step):
        change_topology(state, config, ranks, step, None)
    apply_gradients(state.optimizer, state.layers, config, ranks, lr)
    if state.average is not None:
        state.average.update()
    trace.digests.append(state.digest(ranks))


def train(rank: int, world: int, config: Config) -> Trace:
    ranks = connect(config)
    state, trace = fresh_state(config, ranks), Trace()
    for step in range(1, config.total_steps + 1):
        one_step(state, config, ranks, step, trace, config.optim.lr)
    return trace


MESHES: dict[str, tuple[int, dict[str, int]]] = {
    "2 shard": (2, {}),
    "2 head": (2, {"head": 2}),
    "2 tensor": (2, {"tensor": 2}),
    "2 replicate x 2 head": (4, {"replicate": 2, "head": 2}),
}
EXACT = {"train": {"steps": 10, "global_batch": SEQUENCES, "micro_batch": 3, "precision": "fp64"}}
BESIDE = {"sparsity": {"density": 0.6, "update_every": 4, "prune_rate": 0.3}}


@pytest.fixture(scope="module")
def alone() -> Trace:
    (found,) = run_ranks(train, 1, config_of(**EXACT, **BESIDE))
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_counts_the_same_activity_and_removes_the_same_weights(alone: Trace, mesh: str) -> None:
    world, axes = MESHES[mesh]
    assert sum(values["stripping/dead_units"] for values in alone.values) > 3
    assert alone.values[-1]["stripping/removed_in_all"] > 3
    for found in run_ranks(train, world, config_of(axes, **EXACT, **BESIDE), timeout=100):
        assert all(torch.equal(a, b) for a, b in zip(found.active, alone.active, strict=True))
        for mine, theirs in zip(found.dead, alone.dead, strict=True):
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert (found.removed, found.values, found.digests) == (alone.removed, alone.values, alone.digests)


def regrow(rank: int, world: int, config: Config) -> tuple[int, int]:
    """Weights stripped in all, and how often the topology moved; asserts after every step that none came back."""
    ranks = connect(config)
    state, trace, gone = fresh_state(config, ranks), Trace(), {}
    for step in range(1, config.total_steps + 1):
        before = {layer.name: layer.active.clone() for layer in state.layers}
        one_step(state, config, ranks, step, trace, config.optim.lr)
        for layer in state.layers:
            assert int(layer.active.sum()) == layer.budget.active == state.budgets[layer.name].active
            if layer.stripped is None:
                continue
            assert int(layer.stripped.sum()) == layer.budget.stripped
            assert not (layer.active & layer.stripped).any()
            assert not (gone.get(layer.name, layer.stripped) & ~layer.stripped).any(), "what is stripped stays so"
            gone[layer.name] = layer.stripped.clone()
            average = state.average.values[layer.name] if state.average is not None else None
            held = [state.optimizer.shards[layer.name], average]
            if config.sparsity.grown_moments != "warm":
                held += state.optimizer.moments(layer.name).values()
            for tensor in held:
                assert tensor is None or not tensor.detach().view(-1)[layer.stripped].any(), layer.name
            if is_update_step(config, step) and before[layer.name].all():
                assert torch.equal(layer.active, before[layer.name] & ~layer.stripped), "full layers do not move"
    return sum(budget.stripped for budget in state.budgets.values()), len(set(trace.digests))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "sparsity",
    [
        {},
        {"density": 0.3, "prune_rate": 0.9, "grow": "gradient"},
        {"density": 0.9, "prune_rate": 0.9, "grow": "random", "just_dropped": "exclude", "scope": "heads"},
        {"density": 0.9, "group_density": {"ffn": 1.0}, "just_dropped": "exclude"},
        {"density": 0.5, "grow": "momentum", "grown_moments": "warm", "just_dropped": "zero"},
        {"density": 0.3, "density_schedule": "linear", "density_start": 0.9},
    ],
    ids=["dense", "gradient", "random", "full layers", "momentum", "falling density"],
)
def test_what_is_stripped_never_returns(sparsity: dict[str, Any]) -> None:
    beside = {"prune_rate_schedule": "constant"} | sparsity | ({"update_every": 2} if sparsity else {})
    optim = {"lr": LETHAL, "weight_decay": 0.1}
    steps = EXACT["train"] | {"precision": "fp32", "ema_decay": 0.5, "steps": 15}
    # Units that are seldom active count as dead, so that there are enough.
    stripping = {"every_steps": 5, "quantile": 0.3, "window_steps": 2, "threshold": 0.2}
    ((stripped, topologies),) = run_ranks(
        regrow, 1, config_of(sparsity=beside, stripping=stripping, train=steps, optim=optim)
    )
    assert stripped > 50
    assert topologies > (5 if sparsity else 2)


def deaths(rank: int, world: int, seeds: int) -> list[list[int]]:
    """Dead units of a deep perceptron at each removal, added over ``seeds`` runs: removing nothing, and something."""
    found = []
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(8, 16, generator=generator)
    labels = torch.arange(64) % 8
    for quantile in (0.0, 0.05):
        runs = []
        for seed in range(seeds):
            config = Config.model_validate(
                {
                    "run": {"device": "cpu", "threads_per_rank": 1, "seed": seed},
                    "model": {"family": "mlp", "features": 16, "widths": [32] * 6, "classes": 8},
                    "stripping": {"every_steps": 10, "quantile": quantile},
                    "optim": {"algorithm": "sgd", "lr": 0.1, "clip": 0},
                    "train": {"steps": 150, "global_batch": 64, "micro_batch": 64},
                }
            )
            ranks = connect(config)
            state, trace = fresh_state(config, ranks), Trace()
            for step in range(1, config.total_steps + 1):
                rows = centres[labels] + torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
                lr = config.optim.lr if step <= 50 else 0.02
                one_step(state, config, ranks, step, trace, lr, Inputs.of_labelled(rows, labels))
            runs.append([sum(int(each.sum()) for each in dead.values()) for dead in trace.dead])
        found.append([sum(each) for each in zip(*runs, strict=True)])
    return found


@pytest.mark.timeout(200)
def test_units_of_a_deep_net_come_back_to_life_at_a_large_learning_rate() -> None:
    ((plain, stripped),) = run_ranks(deaths, 1, 2, timeout=180)
    assert plain[-1] > 20
    assert stripped[-1] < 0.2 * plain[-1], (plain, stripped)


def recounted(rank: int, world: int, config: Config) -> tuple[list[int], list[int], list[int]]:
    """Counts after one step of two micro-batches, then after forward passes that are no training."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    activity = state.activity
    assert activity is not None
    activity.listen(state.model)
    accumulate_gradients(state.model, config, batch(1, ranks), ranks)
    activity.stop()
    activity.agree(ranks)
    trained = activity.active.tolist()
    with torch.no_grad():  # as a validation computes
        _, start, context, _ = run_trunk(state.model, config, batch(2, ranks), ranks.head_group)
        for head in own_heads(state.model).values():
            head(start, context)
    activity.agree(ranks)
    return trained, activity.active.tolist(), activity.seen.tolist()


@pytest.mark.timeout(120)
def test_recomputed_activations_count_once_and_what_is_not_trained_on_does_not() -> None:
    ((expected, later, seen),) = run_ranks(recounted, 1, config_of())
    assert sum(expected) > 0 and later == expected and seen == [SEQUENCES * 16] * 6
    for what in ("selective", "full"):
        ((found, _, positions),) = run_ranks(recounted, 1, config_of({"activation_checkpoint": what}))  # type: ignore[dict-item]
        assert (found, positions) == (expected, seen), what


def buried(rank: int, world: int) -> tuple[list[int], dict[str, int], int]:
    """A ResNet of which three channels cannot fire: dead ones, removed weights, weights in their kernels."""
    config = Config.model_validate(
        {
            "run": {"device": "cpu", "threads_per_rank": 1},
            "model": {"family": "resnet20", "classes": 4, "heads": 2, "blocks_in_head": 1},
            "stripping": {"every_steps": 1, "quantile": 0.1},
            "optim": {"algorithm": "sgd", "lr": 0.01},
            "train": {"global_batch": 8, "micro_batch": 4},
        }
    )
    ranks = connect(config)
    state = fresh_state(config, ranks)
    name, dead = "heads.1.blocks.0", [3, 40, 63]
    with torch.no_grad():
        state.parameters[f"{name}.first_norm.bias"].to_local()[dead] = -50.0  # type: ignore[attr-defined]
    assert state.activity is not None
    state.activity.listen(state.model)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    accumulate_gradients(state.model, config, Inputs.of_labelled(pixels, torch.arange(8) % 4), ranks)
    state.activity.stop()
    before = state.parameters[f"{name}.conv3x3_first.weight"].detach().full_tensor().clone()  # type: ignore[attr-defined]
    found = strip(state, config, ranks)
    after = state.parameters[f"{name}.conv3x3_first.weight"].detach().full_tensor()  # type: ignore[attr-defined]
    gone = (before != after).flatten(1)
    for row in dead:
        assert before.flatten(1)[row][gone[row]].max() < before.flatten(1)[row][~gone[row]].min()
    assert (
        found.dead[f"{name}.conv3x3_first.weight"].nonzero().view(-1).tolist()
        == gone.any(1).nonzero().view(-1).tolist()
    )
    return gone.any(1).nonzero().view(-1).tolist(), {k: n for k, n in found.removed.items() if n}, int(gone.sum())


@pytest.mark.timeout(60)
def test_channels_of_a_resnet_lose_the_most_negative_weights_of_their_kernel() -> None:
    ((rows, removed, gone),) = run_ranks(buried, 1)
    assert rows == [3, 40, 63]
    each = -(-(64 * 9 - 1) // 10)
    assert removed == {"heads.1.blocks.0.conv3x3_first.weight": 3 * each} and gone == 3 * each


def test_checkpoints_from_before_there_was_a_choice_still_fit() -> None:
    plain = Config.model_validate({"model": {"hidden": 64}})
    wanted = identity(plain, "tokenizer")
    old = json.loads(json.dumps(wanted))
    del old["model"]["ffn"], old["sparsity"]["stripped"]
    refuse_other_model(Found(RunDir("x").checkpoints, 0, {}, old, 1, []), wanted)


OPTIONS = [
    "method.name=edst", "method.members=2", "method.explore=0.3", "model.ffn=relu", "train.steps=36", "optim.lr=0.3",
    "optim.warmup_steps=0", "train.ema_decay=0.9", "sparsity.update_every=3", "stripping.every_steps=6",
    "stripping.window_steps=5", "stripping.quantile=0.2", "stripping.threshold=0.1", "checkpoint.save_every_steps=4",
]  # fmt: skip


@pytest.mark.timeout(300)
def test_a_run_killed_inside_a_window_equals_one_that_was_not_and_validates_elsewhere(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Beside a method of three phases; counts lie in the checkpoint, and validations inside a window change none."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    method_runs.train(undisturbed, [*corpus.overrides, *OPTIONS, "eval.every_steps=5"])
    resumed = method_runs.train_with_a_kill(killed, [*corpus.overrides, *OPTIONS], 17)
    events = read_lines(RunDir(undisturbed).events)
    begins = [row["step"] for row in events if row["kind"] == "phase"]
    removals = {row["step"]: (row["reason"], row["facts"]) for row in events if row["kind"] == "stripping"}
    phase = max(step for step in [0, *begins] if step <= resumed)
    assert (resumed - phase) % 6 > 1 and sorted(removals)[-1] > 30, "inside a window"
    assert removals == {
        row["step"]: (row["reason"], row["facts"])
        for row in read_lines(RunDir(killed).events)
        if row["kind"] == "stripping"
    }
    assert launches.losses(undisturbed) == launches.losses(killed)
    here, there = (launches.final_tensors(run, 36) for run in (undisturbed, killed))
    assert here.keys() == there.keys() and not [name for name in here if not torch.equal(here[name], there[name])]
    assert here["activity.active"].sum() > 0
    rows = {row["step"]: row for row in read_lines(RunDir(killed).metrics) if "stripping/removed" in row}
    flags = [name.removeprefix("stripped.") for name in here if name.startswith("stripped.")]
    stripped = sum(int(here[f"stripped.{name}"].sum()) for name in flags)
    assert stripped == rows[max(rows)]["stripping/removed_in_all"] == sum(r["stripping/removed"] for r in rows.values())
    assert stripped > 0 and not any((here[f"stripped.{name}"] & here[f"active.{name}"]).any() for name in flags)
    # A removal stays through the escape into the next phase, and in the members.
    ticket = method_runs.topology(killed, "ticket_1")
    assert not any((ticket[name] & here[f"stripped.{name}"].bool()).any() for name in flags)
    assert "ensemble" in command("launch/evaluate.py", str(killed / "members/ticket_1"), "--samples", "8").stdout
