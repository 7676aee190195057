"""Networks whose members share weights, against plain networks: alone, member by member, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.accounting import account, shapes_of
from nt_pretrain.models.groups import group_of
from nt_pretrain.models.member_network import member_network
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import build, context_of, sharing_of, values_of, vision_of
from nt_pretrain.models.vision_accounting import picture_cost

TEXT = ModelSection(vocab_size=64, hidden=32, intermediate=48, layers=2, attention_heads=4, document_mask=True)
PICTURES = ModelSection(family="resnet20", classes=5, output_bias=True)
ROWS = ModelSection(family="mlp", features=7, widths=(16, 12), classes=5)
FAMILIES = [TEXT, PICTURES, ROWS]


def drawn(model: ModelSection, seed: int = 3) -> MultiHead:
    """The network with its initial values."""
    network = build(model)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            index = torch.arange(parameter.numel())
            parameter.copy_(
                values_of(name, tuple(parameter.shape), index, seed=seed, model=model).view(parameter.shape)
            )
    return network


def shared(model: ModelSection, kind: str, members: int, **options: Any) -> ModelSection:
    return model.model_copy(update={"sharing": kind, "members": members, **options})


def batch_of(model: ModelSection) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets and documents of four samples."""
    draw = torch.Generator().manual_seed(0)
    if model.data == "text":
        tokens, targets = torch.randint(0, 64, (2, 4, 16), generator=draw)
        return tokens, targets, (torch.arange(16) // 7).expand(4, 16)
    shape = (4, 3, 16, 16) if model.data == "pictures" else (4, 7)
    return torch.randn(shape, generator=draw), torch.randint(0, 5, (4,), generator=draw), None


def said(network: MultiHead, model: ModelSection, *, training: bool = False) -> tuple[Tensor, Tensor]:
    """Losses and logits."""
    network.train(training)
    inputs, targets, documents = batch_of(model)
    context = context_of(model, documents)
    start = network.trunk_output(inputs, context)
    head = network.heads["0"]
    return head(start, context, targets, 32), head(start, context)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.family)
@pytest.mark.parametrize("kind", ["rank_one", "inputs", "low_rank"])
def test_one_member_without_factors_is_the_plain_network_bit_for_bit(model: ModelSection, kind: str) -> None:
    if (kind, model.data) in (("inputs", "text"), ("low_rank", "pictures"), ("low_rank", "rows")):
        return  # refused
    one = shared(model, kind, 1)
    plain, network = drawn(model), drawn(one)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "rank_one" in name:
                parameter.fill_(1.0)
        if kind == "low_rank":
            network.get_parameter("heads.0.output.0.weight").copy_(plain.heads["0"].output.weight)
    for training in (False, True):
        wanted, found = said(plain, model, training=training), said(network, one, training=training)
        assert torch.equal(found[0][0], wanted[0]) and torch.equal(found[1][0], wanted[1])
    wanted[0].backward()
    found[0].backward(torch.ones(1))
    for name, parameter in plain.named_parameters():
        if name in dict(network.named_parameters()) and network.get_parameter(name).requires_grad:
            assert torch.equal(network.get_parameter(name).grad, parameter.grad), name


@pytest.mark.parametrize("model", [TEXT, PICTURES, ROWS], ids=lambda model: model.family)
@pytest.mark.parametrize("init", ["normal", "signs"])
def test_member_i_is_the_plain_network_with_its_rank_one_factors_on_every_matrix(
    model: ModelSection, init: str
) -> None:
    several = shared(model, "rank_one", 3, factor_init=init)
    network = drawn(several).double()
    with torch.no_grad():  # norms and biases of their own
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and "rank_one" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    losses, logits = _said_in_doubles(network, several)
    for member in range(3):
        plain = member_network(network, several, member)
        wanted = _said_in_doubles(plain, model)
        assert torch.allclose(logits[member], wanted[1], rtol=1e-9, atol=1e-9)
        assert torch.allclose(losses[member], wanted[0], rtol=1e-9)
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)
    path = {"text": "trunk.blocks.0.ffn.up", "pictures": "trunk.blocks.1", "rows": "trunk.blocks.1.linear"}[model.data]
    path += ".conv3x3_first" if model.data == "pictures" else ""
    layer, own = network.get_submodule(path), plain.get_submodule(path).weight
    r, s = layer.rank_one_out.view(3, -1)[2], layer.rank_one_in.view(3, -1)[2]
    factor = (r[:, None] * s).reshape(len(r), len(s), *[1] * (own.ndim - 2))
    assert torch.allclose(own, layer.weight * factor, rtol=1e-12), "W o (r s^T)"
    factors = torch.cat([p for n, p in network.named_parameters() if "rank_one" in n]).detach()
    if init == "signs":
        assert set(factors.tolist()) == {-1.0, 1.0}
    assert abs(factors.mean().item() - (1.0 if init == "normal" else 0.0)) < 0.1
    assert abs(factors.std().item() - (0.5 if init == "normal" else 1.0)) < 0.1


def _said_in_doubles(network: MultiHead, model: ModelSection) -> tuple[Tensor, Tensor]:
    """In training, so that every member's norms use its own batch."""
    network.train()
    inputs, targets, documents = batch_of(model)
    inputs = inputs if model.data == "text" else inputs.double()
    context = context_of(model, documents)
    start = network.trunk_output(inputs, context)
    return network.heads["0"](start, context, targets, 32), network.heads["0"](start, context)


def test_low_rank_members_start_as_their_parent_and_train_what_is_their_own_only() -> None:
    several = shared(TEXT, "low_rank", 3, rank=2)
    plain, network = drawn(TEXT), drawn(several)
    with torch.no_grad():
        for member in range(3):
            network.get_parameter(f"heads.0.output.{member}.weight").copy_(plain.heads["0"].output.weight)
    losses, logits = said(network, several)
    _, wanted = said(plain, TEXT)
    assert all(torch.equal(each, wanted) for each in logits)
    losses.sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    own = {name for name, _ in network.named_parameters() if group_of(name) == "factor" or name.startswith("heads.")}
    assert trained == own
    # A step later B is no longer 0, and members differ as A does.
    with torch.no_grad():
        for name in trained:
            network.get_parameter(name).sub_(network.get_parameter(name).grad)
    _, logits = said(network, several)
    assert not torch.equal(logits[0], logits[1])
    for member in range(3):
        _, wanted = said(member_network(network, several, member), TEXT)
        assert torch.allclose(logits[member], wanted, rtol=1e-3, atol=1e-3)
    query = network.get_submodule("trunk.blocks.0.attention.query")
    a, b = query.low_rank_in.view(3, 2, 32), query.low_rank_out.view(3, 32, 2)
    x = torch.randn(3, 5, 32)
    for member in range(3):
        weight = query.weight + b[member] @ a[member]
        assert torch.allclose(query(x)[member], x[member] @ weight.t(), atol=1e-5)


def test_a_network_of_many_inputs_sees_the_same_sample_for_all_where_one_is_given() -> None:
    for model, axis in ((PICTURES, 1), (ROWS, 1)):
        several = shared(model, "inputs", 3)
        network = drawn(several).eval()
        x, targets, _ = batch_of(model)
        head = network.heads["0"]
        beside = network.trunk_output(torch.cat([x, x, x], dim=axis), None)
        assert torch.equal(head(network.trunk_output(x, None), None), head(beside, None))
        logits = head(beside, None)
        assert logits.shape == (3, 4, 5) and not torch.equal(logits[0], logits[1])
        own = torch.stack([targets, targets.roll(1), targets.roll(2)])
        losses = head(beside, None, own)
        for member in range(3):
            wanted = torch.nn.functional.cross_entropy(logits[member], own[member], reduction="sum")
            assert torch.allclose(losses[member], wanted)


def test_what_members_cost() -> None:
    large = ModelSection(vocab_size=32000, hidden=768, intermediate=2048, layers=12, attention_heads=12)
    plain, four = (account(shapes_of(each), {}, sharing_of(each)) for each in (large, shared(large, "rank_one", 4)))
    extra = four.all.total / plain.all.total - 1
    assert 0.003 < extra < 0.007 and four.by_group["factor"].total > 0
    assert four.per_token.total == 4 * plain.per_token.total
    low = shared(large, "low_rank", 4, rank=8)
    tuned = account(shapes_of(low), {}, sharing_of(low))
    attention, rest = 12 * 4 * 768 * 768, 12 * 3 * 768 * 2048
    assert tuned.frozen.total == 4 * (attention + rest)
    factors, outputs = 4 * 12 * 4 * 2 * 8 * 768, 4 * 32000 * 768
    assert tuned.per_token.total == tuned.frozen.total + factors + outputs
    plain_picture, three = (
        picture_cost(vision_of(each), 32, {}).all.total for each in (PICTURES, shared(PICTURES, "rank_one", 3))
    )
    assert three == 3 * plain_picture
    many = picture_cost(vision_of(shared(PICTURES, "inputs", 3)), 32, {})
    assert plain_picture < many.all.total < 1.1 * plain_picture
