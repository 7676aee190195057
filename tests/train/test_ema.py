"""The moving average of the weights: its values, its zeros, how it takes the place of the weights, how it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nt_pretrain.checkpoint.load import Found, newest_valid
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.forward import Inputs, run_trunk
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.parallel.shard import own_heads
from nt_pretrain.sparsity.update import update
from nt_pretrain.train.ema import Average, swapped
from nt_pretrain.train.resume import first_line, resume
from nt_pretrain.train.state import TrainState, fresh_state, identity
from tests.gloo import run_ranks
from tests.sparsity.test_update import NAME, make
from tests.train.test_optim import NOWHERE, mine, train_on
from tests.train.worlds import tiny


def test_it_is_the_average_that_its_formula_says() -> None:
    live = {"a": torch.randn(3, 2), "b": torch.zeros(2, dtype=torch.float64)}
    average = Average.of(live, 0.9)
    expected = {name: tensor.double().clone() for name, tensor in live.items()}
    for step in range(5):
        for name, tensor in live.items():
            tensor.add_(torch.randn_like(tensor) + step)
            expected[name] = 0.9 * expected[name] + 0.1 * tensor.double()
        average.update()
    assert {name: value.dtype for name, value in average.values.items()} == {"a": torch.float32, "b": torch.float64}
    for name, value in average.values.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_bf16_weights_are_averaged_in_fp32() -> None:
    """A thousandth of a weight is less than bf16 can add to it."""
    weight = torch.ones(2, dtype=torch.bfloat16)
    average = Average.of({"a": weight}, 0.999)
    weight.add_(1.0)
    average.update()
    torch.testing.assert_close(average.values["a"], torch.full((2,), 1.001))
    with average.swapped():
        assert torch.equal(weight, torch.ones(2, dtype=torch.bfloat16))
    assert torch.equal(weight, torch.full((2,), 2.0, dtype=torch.bfloat16))


def test_counters_are_left_out_and_batch_statistics_taken() -> None:
    norm = torch.nn.BatchNorm2d(4)
    average = Average.of(dict(norm.named_buffers()), 0.5)
    norm(torch.randn(8, 4, 3, 3) + 5.0)
    average.update()
    assert average.values.keys() == {"running_mean", "running_var"}
    assert norm.running_mean is not None
    torch.testing.assert_close(average.values["running_mean"], 0.5 * norm.running_mean)


def test_swapped_gives_the_weights_back_bit_for_bit_even_after_an_error() -> None:
    live = {"a": torch.randn(1000)}
    average = Average.of(live, 0.5)
    live["a"].mul_(1.7)
    average.update()
    before, averaged = live["a"].clone(), average.values["a"].clone()
    with pytest.raises(RuntimeError, match="meanwhile"), average.swapped():
        assert torch.equal(live["a"], averaged)
        raise RuntimeError("meanwhile")
    assert torch.equal(live["a"], before) and torch.equal(average.values["a"], averaged)


@pytest.mark.parametrize("moments", ["mean", "warm"])
@pytest.mark.parametrize("just_dropped", ["keep", "zero", "exclude"])
@pytest.mark.parametrize("unit", [1, 16])
def test_an_update_zeroes_the_average_exactly_where_it_zeroes_the_weight(
    unit: int, just_dropped: str, moments: str
) -> None:
    layer, tensors, section = make(unit=unit, just_dropped=just_dropped, grown_moments=moments)
    tensors.second_moment = None
    tensors.average = torch.rand_like(tensors.weight) + 1.0
    tensors.average.view(-1)[~layer.elements(layer.active)] = 0.0
    weight, average, before = tensors.weight.clone(), tensors.average.clone(), layer.active.clone()
    update(
        [layer], {NAME: tensors}, sparsity=section, targets={NAME: layer.budget}, prune_rate=0.3, seed=0, step=1,
        group=None,
    )  # fmt: skip
    dropped, grown = (
        layer.elements(flags).view_as(weight) for flags in (before & ~layer.active, layer.active & ~before)
    )
    assert bool(dropped.any()) and bool(grown.any())
    assert not tensors.average[dropped].any() and not tensors.average[grown].any()
    kept = tensors.weight != 0.0
    assert torch.equal(tensors.average != 0.0, kept & (weight != 0.0))
    assert torch.equal(tensors.average[kept], average[kept])


def logits(state: TrainState, config: Config, batch: Inputs, ranks: Ranks) -> Tensor:
    with torch.no_grad():
        _, start, context, _ = run_trunk(state.model, config, batch, ranks.head_group)
        return torch.stack([head(start, context) for head in own_heads(state.model).values()])


def swap(rank: int, world: int, config: Config) -> dict[str, bool]:
    """What the model computes with its weights, with their average, and with its weights again."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    train_on(state, config, ranks, range(1, 4))
    batch = mine(rank, world, 1)
    before = {name: shard.detach().clone() for name, shard in state.optimizer.shards.items()}
    raw = logits(state, config, batch, ranks)
    with swapped(state.average, state.model):
        averaged = logits(state, config, batch, ranks)
    again = logits(state, config, batch, ranks)
    same = all(torch.equal(before[name], shard.detach()) for name, shard in state.optimizer.shards.items())
    # The same by other means: a model into which the averages were written before it ever ran.
    other = fresh_state(config, ranks)
    assert state.average is not None
    with torch.no_grad():
        for name, values in state.average.values.items():
            other.optimizer.shards[name].copy_(values)
    expected = logits(other, config, batch, ranks)
    return {
        "averages differ from weights": not torch.equal(raw, averaged),
        "averages are used": torch.equal(averaged, expected),
        "weights are used again": torch.equal(raw, again),
        "weights are the same bits": same,
        "trains on": train_on_from(state, config, ranks),
    }


def train_on_from(state: TrainState, config: Config, ranks: Ranks) -> bool:
    """Whether the next step is that of a run whose average never took the weights' place."""
    undisturbed = fresh_state(config, ranks)
    train_on(undisturbed, config, ranks, range(1, 5))
    train_on(state, config, ranks, range(4, 5))
    shards = state.optimizer.shards
    return all(torch.equal(shard, shards[name]) for name, shard in undisturbed.optimizer.shards.items())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("whole", [False, True], ids=["gathered", "kept whole"])
def test_the_model_computes_with_the_average_and_then_with_its_weights(whole: bool) -> None:
    """On two ranks, where what was gathered of the one must not be used for the other."""
    config = tiny(train={"ema_decay": 0.7})
    if whole:
        parallel = config.parallel.model_copy(update={"reshard_after_forward": False})
        config = config.model_copy(update={"parallel": parallel})
    for found in run_ranks(swap, 2, config):
        assert found == dict.fromkeys(found, True)


def turned_on(rank: int, world: int, folder: Path, configs: tuple[Config, Config]) -> dict[str, Any]:
    """A checkpoint without an average read by a run with one, and the other way round."""
    without, with_one = configs
    told: dict[str, Any] = {}
    for name, here, there in (("on", without, with_one), ("off", with_one, without), ("kept", with_one, with_one)):
        ranks = connect(here)
        state = fresh_state(here, ranks)
        train_on(state, here, ranks, range(1, 3))
        facts = state.facts(ranks) | {"position": NOWHERE.to_json()}
        tensors = state.checkpoint_tensors()
        save(folder / name, 2, tensors, facts, identity=identity(here, "x"), group=ranks.saving)
        found = newest_valid(folder / name, group=ranks.control)
        assert isinstance(found, Found)
        other = fresh_state(there, ranks)
        resume(other, found, there, identity(there, "x"), ranks)
        told[name] = first_line(RunDir(folder / "run"), other, found, there)
        if other.average is not None:
            expected = state.average.values if state.average is not None else state.optimizer.shards
            told[f"{name} right"] = all(torch.equal(v, expected[n]) for n, v in other.average.values.items())
    return told


@pytest.mark.timeout(120)
def test_an_average_that_the_checkpoint_lacks_starts_from_its_weights_and_that_is_told(tmp_path: Path) -> None:
    (told,) = run_ranks(turned_on, 1, tmp_path, (tiny(), tiny(train={"ema_decay": 0.7})))
    words = "; train.ema_decay: the average starts from these weights, the checkpoint has none"
    assert told["on"].endswith(words) and words not in told["off"] + told["kept"]
    assert told["on right"] and told["kept right"]
