"""Units dealt to parts: each to one, and a part computes what the whole model does without the others' units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.llama import RMSNorm
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import build, context_of
from nt_pretrain.models.partition import (
    Owners,
    Residual,
    Site,
    deal,
    incoming,
    kernel_of,
    narrower,
    places,
    sites_of,
    sizes_of,
    undealable,
)
from nt_pretrain.train.costs import costs_of

TEXT = dict(vocab_size=37, hidden=21, intermediate=23, layers=2, attention_heads=6, head_width=4)
MODELS: dict[str, tuple[dict[str, Any], int, Residual]] = {
    "text": (TEXT, 3, "split"),
    "text, residual stream whole": (TEXT, 3, "whole"),
    "text, grouped queries, relu": (TEXT | {"kv_heads": 3, "ffn": "relu", "final_norm_twice": True}, 2, "split"),
    "basic blocks": (dict(family="resnet20", classes=5, channels=(7, 7, 9, 11)), 3, "split"),
    "small stem": (dict(family="resnet18", classes=5, channels=(5, 5, 6, 7, 8), small_stem=True), 2, "split"),
    "bottlenecks": (dict(family="resnet50", classes=5, channels=(5, 3, 4, 3, 3), output_bias=True), 2, "split"),
    "wide": (dict(family="wide_resnet28_10", classes=5, channels=(5, 9, 7, 8)), 3, "split"),
    "rows": (dict(family="mlp", features=6, widths=(7, 8, 9), classes=4), 3, "split"),
}


def dealt(model: ModelSection, of: int, residual: Residual, seed: int) -> tuple[dict[str, Site], Owners]:
    """Units dealt by random scores."""
    sites = sites_of(model, shapes_of(model), residual)
    sizes = sizes_of(sites, [shapes_of(narrower(model, part, of, residual)) for part in range(of)])
    generator = torch.Generator().manual_seed(seed)
    scores = {space: torch.randint(1000, (sum(each),), generator=generator) for space, each in sizes.items()}
    return sites, deal(scores, sizes, "interleaved")


def taken(name: str, tensor: Tensor, site: Site, owners: Owners, part: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of ``tensor`` that a part has."""
    if tensor.dim() == 0:
        return torch.arange(0), torch.arange(0)
    columns = tensor.shape[1] if tensor.dim() > 1 else 1
    device = torch.device("cpu")
    return places(site.rows, len(tensor), owners, part, device), places(site.columns, columns, owners, part, device)


def packed(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return tensor[rows][:, columns] if tensor.dim() > 1 else tensor[rows]


def removed(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same of full size, zero elsewhere."""
    kept = torch.zeros(tensor.shape[:2], dtype=torch.bool)
    if tensor.dim() > 1:
        kept[rows[:, None], columns] = True
    else:
        kept[rows] = True
    return tensor * kept.view(*kept.shape, *[1] * (tensor.dim() - kept.dim()))


def logits(network: MultiHead, model: ModelSection) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if model.data == "text":
        tokens = torch.randint(0, model.vocab_size, (2, 9), generator=generator)
        context = context_of(model, torch.zeros_like(tokens))
        return network.heads["0"](network.trunk_output(tokens, context), context)
    shape = (2, 3, 16, 16) if model.data == "pictures" else (2, model.features)
    inputs = torch.rand(shape, generator=generator, dtype=torch.float64)
    return network.heads["0"](network.trunk_output(inputs, None), None)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_packed_part_computes_what_the_model_does_without_the_other_units(name: str) -> None:
    options, of, residual = MODELS[name]
    model = ModelSection(**options)
    sites, owners = dealt(model, of, residual, seed=1)
    torch.manual_seed(2)
    whole = {
        key: torch.rand_like(x.double()) for key, x in build(model).state_dict().items() if x.dtype.is_floating_point
    }
    whole = {key: x if key.endswith("running_var") else x - 0.4 for key, x in whole.items()}
    assert whole.keys() == sites.keys() & whole.keys()
    found = []
    for part in range(of):
        own = narrower(model, part, of, residual)
        small, large = build(own).double().eval(), build(model).double().eval()
        cuts = {key: taken(key, x, sites[key], owners, part) for key, x in whole.items()}
        small.load_state_dict({key: packed(x, *cuts[key]) for key, x in whole.items()}, strict=False)
        large.load_state_dict({key: removed(x, *cuts[key]) for key, x in whole.items()}, strict=False)
        for norm in large.modules():
            if isinstance(norm, RMSNorm) and residual == "split":
                # Norms have statistics of their own units: the mean of squares is over these alone.
                norm.eps *= own.hidden / model.hidden
                norm.weight.mul_((own.hidden / model.hidden) ** 0.5)
        for key, x in small.state_dict().items():
            if key in whole:
                assert x.shape == packed(whole[key], *cuts[key]).shape
        found.append(logits(small, own))
        torch.testing.assert_close(found[-1], logits(large, model), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", MODELS)
def test_every_unit_has_one_part_and_no_weight_two(name: str) -> None:
    options, of, residual = MODELS[name]
    model = ModelSection(**options)
    sites, owners = dealt(model, of, residual, seed=3)
    for space, owner in owners.items():
        counts = owner.bincount(minlength=of).tolist()
        widest = 4 if space.endswith(".out") and model.family == "resnet50" else 1
        assert sum(counts) == len(owner) and min(counts) > 0 and max(counts) - min(counts) <= widest, space
    shapes = shapes_of(model)
    for key, shape in shapes.items():
        ones = torch.ones(shape)
        holders = sum(removed(ones, *taken(key, ones, sites[key], owners, part)) for part in range(of))
        site = sites[key]
        if site.rows is None and site.columns is None:
            assert key.endswith("bias") or residual == "whole", "what no unit has, all have"
        elif site.rows is None or site.columns is None:
            assert (holders == 1).all(), key
        else:
            assert holders.max() == 1 and holders.min() == 0, key
    sizes = sizes_of(sites, [shapes_of(narrower(model, part, of, residual)) for part in range(of)])
    parts = [shapes_of(narrower(model, part, of, residual)) for part in range(of)]
    assert all(shapes.keys() == part.keys() for part in parts)
    assert {space: [int((owners[space] == part).sum()) for part in range(of)] for space in owners} == sizes


def test_sequential_gives_the_best_to_the_first_and_interleaved_goes_by_turns() -> None:
    scores = {"a": torch.tensor([5, 9, 7, 7, 1, 8, 2])}
    sequential = deal(scores, {"a": [3, 2, 2]}, "sequential")["a"]
    assert sequential.tolist() == [1, 0, 0, 1, 2, 0, 2], "of the two sevens the one that stands first is better"
    interleaved = deal(scores, {"a": [3, 2, 2]}, "interleaved")["a"]
    assert interleaved.tolist() == [1, 0, 2, 0, 0, 1, 2], "rank r goes to part r mod 3"
    assert deal(scores, {"a": [5, 1, 1]}, "interleaved")["a"].tolist() == [0, 0, 2, 0, 0, 1, 0], "while it has room"


@pytest.mark.parametrize("name", ["text, grouped queries, relu", "basic blocks", "rows"])
def test_scores_are_norms_of_incoming_weights_in_any_order_of_addition(name: str) -> None:
    model = ModelSection(**MODELS[name][0])
    shapes = shapes_of(model)
    for key, site in sites_of(model, shapes, "split").items():
        if site.leads_to is None:
            continue
        values = torch.randn(shapes[key]).reshape(shapes[key][0], -1)
        found = incoming(values, site, kernel_of(shapes[key]))
        per_place = values.abs().sum(1) if site.leads_to is site.rows else values.abs().sum(0)
        expected = per_place.view(len(found), -1).sum(1)
        torch.testing.assert_close(found.double() * 2.0**-32, expected.double(), rtol=1e-5, atol=1e-6)
        if site.leads_to is site.rows:
            mixed = values[:, torch.randperm(values.shape[1])]
            assert torch.equal(incoming(mixed, site, kernel_of(shapes[key])), found)
    leading = {site.leads_to.space for site in sites_of(model, shapes, "split").values() if site.leads_to}
    assert leading == {a.space for s in sites_of(model, shapes, "split").values() for a in (s.rows, s.columns) if a}


def test_too_many_parts_are_refused_with_the_most_there_can_be() -> None:
    (said,) = undealable(ModelSection(attention_heads=12, kv_heads=2), 3, "split")
    assert said.startswith("model.kv_heads: 2 units cannot be dealt to 3 members") and said.endswith("members: 2")
    assert not undealable(ModelSection(family="mlp", widths=(64, 3)), 3, "split")
    assert undealable(ModelSection(family="mlp", widths=(64, 3)), 4, "split")
    assert undealable(ModelSection(family="resnet20"), 17, "split")
    (said,) = undealable(ModelSection(family="wide_resnet28_10", channels=(5, 6, 7, 8)), 3, "split")
    assert "[[2, 2, 3, 3], [2, 2, 2, 3], [1, 2, 2, 2]]" in said
    assert not undealable(ModelSection(family="wide_resnet28_10"), 3, "split")


def test_the_accounting_shows_the_saving() -> None:
    """The perceptron of three members: 0.60 of the multiply-adds."""
    method = {"name": "ex_uno_plures", "members": 3}
    rows = Config.model_validate({"model": {"family": "mlp", "classes": 10}, "method": method, "train": {"steps": 10}})
    costs = costs_of(rows)
    dense = 32 * 64 + 64 * 64 + 64 * 10
    members = 32 * 64 + (22 * 22 + 2 * 21 * 21) + 64 * 10
    assert (costs.dense.inference.total, costs.ensemble.inference.total) == (2 * dense, 2 * members)
    assert costs.ensemble.executed / costs.dense.executed == pytest.approx(members / dense)
    assert costs.ensemble.parameters.total - costs.dense.parameters.total == members - dense + 2 * 10
    model = dict(vocab_size=64, hidden=48, intermediate=96, layers=2, attention_heads=6)
    for residual, blocks, vocabulary in (("split", 1 / 3, 1), ("whole", 1, 3)):
        text = Config.model_validate(
            {"model": model, "method": method | {"residual": residual}, "data": {"sequence_length": 8}}
        )
        costs = costs_of(text)
        attention = 2 * 2 * 48 * 8 // 2  # scores and weighted sums of two blocks, causal
        of_blocks, of_output = 2 * (4 * 48 * 48 + 3 * 48 * 96), 64 * 48
        assert costs.dense.inference.total == 2 * (of_blocks + of_output + attention)
        assert costs.ensemble.inference.total == 2 * (round(of_blocks * blocks) + of_output * vocabulary + attention)
