"""Dropped weights: chance by their global number, nothing left behind, on any sharding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from nt_pretrain.config.schema import Config, ParallelSection
from nt_pretrain.eval.weight_dropout import SHARES, dropped, weight_dropout
from nt_pretrain.models.llama import make_context
from nt_pretrain.models.multihead import MultiHead, build
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.shard import own_heads, roots
from nt_pretrain.train.state import fresh_state
from tests.gloo import run_ranks
from tests.train.worlds import tiny


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 50)).requires_grad_()


def bits(model: nn.Module) -> list[bytes]:
    return [p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in model.state_dict().values() if p.ndim]


def test_a_share_of_every_matrix_is_zero_and_comes_back() -> None:
    model = network()
    weight = model[3].weight
    with torch.no_grad():
        weight[0, :5] = torch.tensor([-0.0, torch.nan, torch.inf, 1e-42, -1.0])
        weight[1:, ::2] = 0.0  # inactive
    before, state = bits(model), {name: p.clone() for name, p in model.state_dict().items()}
    with weight_dropout(model, 0.3, seed=1):
        for name, value in model.state_dict().items():
            if name in ("0.weight", "3.weight"):
                hit = dropped(name, state[name], 0.3, 1)
                assert not value[hit].any() and hit.any()
                assert torch.equal(value[~hit].nan_to_num(7.0), state[name][~hit].nan_to_num(7.0))
            else:
                assert torch.equal(value, state[name]), "norms and biases stay"
        active = state["3.weight"] != 0
        share = 1 - float((weight != 0)[active].sum() / active.sum())
        assert share == pytest.approx(0.3, abs=0.06), "of the active ones"
    assert bits(model) == before


def test_an_error_inside_leaves_nothing_behind() -> None:
    model = network()
    before = bits(model)
    with pytest.raises(RuntimeError, match="stop"), weight_dropout(model, 1.0, seed=1):
        assert not model[0].weight.any()
        raise RuntimeError("stop")
    assert bits(model) == before


def test_other_layouts_of_memory_have_the_same_weights_dropped() -> None:
    one, other = network(), network().to(memory_format=torch.channels_last)
    assert not other[0].weight.is_contiguous()
    with weight_dropout(one, 0.2, seed=5), weight_dropout(other, 0.2, seed=5):
        assert torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(one[0].weight, other[0].weight) and one[0].weight.all()


def test_shares_nest_and_seeds_and_names_differ() -> None:
    weight = torch.ones(300, 400)
    found = [dropped("a.weight", weight, share, 1) for share in SHARES]
    for share, hit in zip(SHARES, found, strict=True):
        assert float(hit.float().mean()) == pytest.approx(share, abs=0.005)
    assert all((more | less == more).all() for less, more in itertools.pairwise(found))
    assert not torch.equal(dropped("b.weight", weight, 0.3, 1), found[-1])
    assert not torch.equal(dropped("a.weight", weight, 0.3, 2), found[-1])
    assert not dropped("a.weight", weight, 0.0, 1).any() and dropped("a.weight", weight, 1.0, 1).all()


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"share 1\.5 of dropped weights must lie between 0 and 1"):
        weight_dropout(network(), 1.5, seed=0).__enter__()


def whole(model: nn.Module) -> dict[str, Tensor]:
    pairs = model.named_parameters()
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in pairs}


def answers(model: MultiHead, config: Config) -> dict[int, Tensor]:
    tokens = torch.arange(16).view(2, 8)
    context = make_context(config.model, torch.zeros_like(tokens))
    with torch.no_grad():
        hidden = model.trunk_output(tokens, context)
        return {number: head(hidden, context) for number, head in own_heads(model).items()}


def _on_ranks(rank: int, world: int, config: Config) -> dict[str, dict[str, Tensor] | dict[int, Tensor]]:
    """Weights and answers before, inside and after; a forward pass before each, which gathers weights."""
    model = fresh_state(config, connect(config)).model
    found = {"before": whole(model), "answers before": answers(model, config)}
    with weight_dropout(model, 0.2, seed=11):
        first = answers(model, config)
        for root in roots(model):  # as a validation ends
            root.reshard()
        found |= {"answers inside": answers(model, config)}
        assert all(torch.equal(value, found["answers inside"][head]) for head, value in first.items())
    found |= {"answers after": answers(model, config)}
    with weight_dropout(model, 0.2, seed=11):
        found |= {"inside": whole(model)}
    return found | {"after": whole(model)}


def sharded(**parallel: object) -> Config:
    config = tiny()
    return config.model_copy(update={"parallel": ParallelSection(deterministic_reduce=True, **parallel)})


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("world", "parallel"),
    [(2, {"reshard_after_forward": False}), (3, {"head": 3}), (2, {"tensor": 2})],
    ids=["sharded", "heads", "tensor"],
)
def test_shards_drop_the_weights_of_the_whole(world: int, parallel: dict[str, object]) -> None:
    config = sharded(**parallel)
    ranks = run_ranks(_on_ranks, world, config, timeout=120)
    plain = build(config.model)
    start = {name: value for rank in ranks for name, value in rank["before"].items()}
    plain.load_state_dict(start)
    expected = answers(plain, config)
    with weight_dropout(plain, 0.2, seed=11):
        inside, harmed = whole(plain), answers(plain, config)
    assert set(start) == set(inside)
    for rank in ranks:
        for name, value in rank["inside"].items():
            assert torch.equal(value, inside[name]), name
        for name, value in rank["after"].items():
            assert torch.equal(value, start[name]), name
        for head, logits in rank["answers inside"].items():
            assert torch.allclose(logits, harmed[head], atol=1e-5) and not torch.allclose(harmed[head], expected[head])
            assert torch.allclose(rank["answers before"][head], expected[head], atol=1e-5)
            assert torch.equal(rank["answers after"][head], rank["answers before"][head])
