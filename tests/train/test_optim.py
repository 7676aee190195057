"""AdamW and SGD on shards: SGD against torch's own on one process, both on two ranks, with moving topologies,
and across a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nt_pretrain.checkpoint.load import newest_valid
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import Config, OptimSection
from nt_pretrain.data.position import Plan, Position
from nt_pretrain.models.multihead import build
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.train.optim import Optimizer
from nt_pretrain.train.resume import resume
from nt_pretrain.train.state import TrainState, fresh_state, identity
from nt_pretrain.train.step import accumulate_gradients, apply_gradients, micro_batch_backward
from tests.gloo import run_ranks
from tests.train.worlds import SEQUENCES, Trace, change, hash_of, sequences, tiny, train_rank

ODD = {"hidden": 20, "intermediate": 27, "attention_heads": 2, "vocab_size": 163}
"""Widths whose shards end amid a vector of the CPU, where a kernel may round in another way."""
OPTIM: dict[str, Any] = {"algorithm": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "clip": 0.0}

NOWHERE = Position(Plan({}, "x", 0, 1, 1, 1, "pack", SEQUENCES), 4, {})
"""These runs make up their own data."""


def sgd(*, optim: dict[str, Any] | None = None, **sections: Any) -> Config:
    return tiny(model=ODD, optim=OPTIM | (optim or {}), **sections)


def mine(rank: int, world: int, step: int) -> Inputs:
    """This rank's part of the global batch of a step."""
    tokens, documents = sequences(step)
    part = slice(rank * SEQUENCES // world, (rank + 1) * SEQUENCES // world)
    return Inputs.of_text(tokens[part], documents[part])


def whole(state: TrainState) -> dict[str, Tensor]:
    return {name: parameter.full_tensor().detach().clone() for name, parameter in state.parameters.items()}  # type: ignore[attr-defined]


def dense_steps(
    rank: int, world: int, configs: list[Config], steps: int
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights before and after some steps of the framework, of each configuration."""
    found = []
    for config in configs:
        ranks = connect(config)
        state = fresh_state(config, ranks)
        first = whole(state)
        for step in range(1, steps + 1):
            accumulate_gradients(state.model, config, mine(rank, world, step), ranks)
            apply_gradients(state.optimizer, state.layers, config, ranks, 0.05 / step)
        found.append((first, whole(state)))
    return found


@pytest.mark.timeout(120)
def test_a_dense_model_trains_as_with_torchs_own_sgd() -> None:
    """A plain model and a plain optimizer, whose momentum is not there before the first step: equal to the bit."""
    dense: dict[str, Any] = {"sparsity": {"density": 1.0}, "train": {"micro_batch": SEQUENCES}}
    configs = [sgd(optim={"nesterov": nesterov}, **dense) for nesterov in (True, False)]
    for config, (first, found) in zip(configs, run_ranks(dense_steps, 1, configs, 5)[0], strict=True):
        model = build(config.model)
        model.load_state_dict(first)
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        plain = [p for p in model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        options: dict[str, Any] = {"momentum": 0.9, "nesterov": config.optim.nesterov, "weight_decay": 1e-2}
        peer = torch.optim.SGD(groups, lr=1.0, foreach=False, **options)
        for step in range(1, 6):
            batch = Inputs.of_text(*sequences(step))
            scale = 1.0 / int((batch.targets >= 0).sum()) / config.model.heads
            micro_batch_backward(model, config, batch, scale)
            for group in peer.param_groups:
                group["lr"] = 0.05 / step
            peer.step()
            peer.zero_grad()
        assert len(plain) > 5 and not torch.equal(first["trunk.embedding.weight"], found["trunk.embedding.weight"])
        assert not [name for name, p in model.named_parameters() if not torch.equal(p.detach(), found[name])]


def train_all(rank: int, world: int, configs: list[Config]) -> list[Trace]:
    return [train_rank(rank, world, config) for config in configs]


@pytest.mark.timeout(200)
def test_two_ranks_are_one_rank_bit_for_bit() -> None:
    rules: list[dict[str, Any]] = [{}, {"grow": "momentum", "grown_moments": "warm"}]
    configs = [sgd(sparsity=rule, optim={"clip": 0.3}, train={"ema_decay": 0.8}) for rule in rules]
    configs.append(tiny(model=ODD))  # AdamW
    (alone,) = run_ranks(train_all, 1, configs)
    assert all(len(set(trace.digests)) == 4 for trace in alone), "three topology updates"
    for traces in run_ranks(train_all, 2, configs):
        assert traces == alone


def inactive(state: TrainState) -> dict[str, int]:
    """Numbers of inactive weights, and of weights, averages and momenta that are not zero there."""
    found = {"inactive": 0, "weights": 0, "averages": 0, "momenta": 0}
    assert state.average is not None
    for layer in state.layers:
        off = ~layer.elements(layer.active)
        found["inactive"] += int(off.sum())
        values = {
            "weights": state.optimizer.shards[layer.name].detach(),
            "averages": state.average.values[layer.name],
            "momenta": state.optimizer.first_moment(layer.name),
        }
        for kind, tensor in values.items():
            found[kind] += int(tensor.reshape(-1)[off].count_nonzero())
    return found


def sparse_steps(rank: int, world: int, configs: list[Config]) -> list[list[dict[str, int]]]:
    """Counts after each update, which comes right before the optimizer, and after each step."""
    found: list[list[dict[str, int]]] = []
    for config in configs:
        ranks = connect(config)
        state = fresh_state(config, ranks)
        found.append([])
        for step in range(1, 5):
            accumulate_gradients(state.model, config, mine(rank, world, step), ranks)
            if step % 2 == 0:
                change(state, config, ranks, step)
                found[-1].append(inactive(state))
            apply_gradients(state.optimizer, state.layers, config, ranks, 0.05)
            assert state.average is not None
            state.average.update()
            found[-1].append(inactive(state))
    return found


@pytest.mark.timeout(120)
def test_inactive_weights_stay_exactly_zero() -> None:
    fates = ["mean", "zero", "warm"]
    configs = [sgd(sparsity={"grown_moments": fate}, train={"ema_decay": 0.8}) for fate in fates]
    for fate, found in zip(fates, run_ranks(sparse_steps, 2, configs)[0], strict=True):
        for counts in found:
            assert counts["inactive"] > 1000 and counts["weights"] == counts["averages"] == 0
            if fate == "warm":
                assert counts["momenta"] > 0.9 * counts["inactive"], "the momentum integrates the dense gradient"
            else:
                assert counts["momenta"] == 0


def train_on(state: TrainState, config: Config, ranks: Ranks, steps: range) -> None:
    for step in steps:
        accumulate_gradients(state.model, config, mine(ranks.rank, ranks.world, step), ranks)
        if step % 3 == 0:
            change(state, config, ranks, step)
        apply_gradients(state.optimizer, state.layers, config, ranks, 0.05)
        if state.average is not None:
            state.average.update()
        state.step = step


def hashes(state: TrainState) -> dict[str, str]:
    return {name: hash_of([tensor]) for name, tensor in state.checkpoint_tensors().items()}


def begin(rank: int, world: int, configs: dict[str, Config], folder: Path) -> dict[str, dict[str, str]]:
    """Four steps, a checkpoint, four steps more: the runs that nobody killed."""
    found = {}
    for name, config in configs.items():
        ranks = connect(config)
        state = fresh_state(config, ranks)
        train_on(state, config, ranks, range(1, 5))
        facts = state.facts(ranks) | {"position": NOWHERE.to_json()}
        saved_as = identity(config, "x")
        save(folder / name, 4, state.checkpoint_tensors(), facts, identity=saved_as, group=ranks.saving)
        train_on(state, config, ranks, range(5, 9))
        found[name] = hashes(state)
    return found


def go_on(rank: int, world: int, configs: dict[str, Config], folder: Path) -> dict[str, dict[str, str]]:
    """The last four steps from the checkpoints."""
    results = {}
    for name, config in configs.items():
        ranks = connect(config)
        state = fresh_state(config, ranks)
        found = newest_valid(folder / name, group=ranks.control)
        assert found is not None
        resume(state, found, config, identity(config, "x"), ranks)
        assert state.step == 4 and state.optimizer.steps_taken() == 4
        train_on(state, config, ranks, range(5, 9))
        results[name] = hashes(state)
    return results


@pytest.mark.timeout(200)
def test_a_run_that_goes_on_from_a_checkpoint_is_the_same_run(tmp_path: Path) -> None:
    """On as many ranks, and on another number of them: weights, momentum, average and topology to the bit."""
    fates = ["mean", "warm"]
    configs = {
        fate: sgd(sparsity={"grown_moments": fate}, train={"ema_decay": 0.8}, optim={"clip": 0.3}) for fate in fates
    }
    expected = run_ranks(begin, 2, configs, tmp_path)[0]
    for found in expected.values():
        assert {name.split(".")[0] for name in found} == {"model", "first_moment", "ema", "active", "explored"}
    for world in (1, 2):
        assert run_ranks(go_on, world, configs, tmp_path)[0] == expected, world


def test_norms_and_biases_do_not_decay() -> None:
    parameters = {
        "a": nn.Parameter(torch.ones(3, 2)),
        "b": nn.Parameter(torch.ones(3)),
        "c": nn.Parameter(torch.ones(2, 1, 3, 3)),
    }
    optimizer = Optimizer(parameters, OptimSection(**OPTIM | {"weight_decay": 0.5}))
    optimizer.step({name: torch.zeros_like(p) for name, p in parameters.items()}, 0.1)
    assert torch.equal(parameters["b"], torch.ones(3))
    # Nesterov: the first step is (1 + momentum) times the gradient.
    for name in ("a", "c"):
        torch.testing.assert_close(parameters[name].detach(), torch.full_like(parameters[name], 1 - 0.1 * 1.9 * 0.5))
        torch.testing.assert_close(optimizer.first_moment(name), torch.full_like(parameters[name], 0.5))
    assert optimizer.second_moment("a") is None and list(optimizer.moments("a")) == ["first_moment"]
