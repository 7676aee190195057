"""A multilayer perceptron of trunk and heads: cut anywhere, the same bits wherever it is held, its costs by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nt_pretrain.config.checks import problems
from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.models.accounting import account, shapes_of
from nt_pretrain.models.groups import group_of
from nt_pretrain.models.network import block_count, build, values_of
from nt_pretrain.sparsity.budget import plan_budgets
from nt_pretrain.train.plan import make_plan


def section(**options: object) -> ModelSection:
    return ModelSection.model_validate({"family": "mlp", "features": 6, "widths": [8, 10, 12], "classes": 4, **options})


def config(model: dict[str, object] | None = None, **sections: dict[str, object]) -> Config:
    return Config.model_validate(
        {"model": {"family": "mlp", "features": 6, "widths": [8, 10, 12], "classes": 4, **(model or {})}, **sections}
    )


@pytest.mark.parametrize("blocks_in_head", [0, 1, 2, 3])
def test_it_is_cut_at_every_layer(blocks_in_head: int) -> None:
    model = section(heads=2, blocks_in_head=blocks_in_head)
    network = build(model)
    assert (network.trunk is None) == (blocks_in_head == 3) and block_count(model) == 3
    assert [len(head.blocks) for head in network.heads.values()] == [blocks_in_head] * 2
    x, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, -100])
    hidden = network.trunk_output(x, None)
    for number, head in network.heads.items():
        by_hand = x
        for block in [*(network.trunk.blocks if network.trunk is not None else []), *head.blocks]:
            by_hand = (by_hand @ block.linear.weight.T + block.linear.bias).clamp_min(0)
        logits = by_hand @ head.output.weight.T + head.output.bias
        assert torch.allclose(head(hidden, None), logits, atol=1e-6), number
        loss = F.cross_entropy(logits[:4], labels[:4], reduction="sum")
        assert head(hidden, None, labels).item() == pytest.approx(loss.item(), rel=1e-6)


def test_heads_of_a_group_keep_their_numbers() -> None:
    part = build(section(heads=4, blocks_in_head=1), range(2, 4))
    assert list(part.heads) == ["2", "3"]


def test_initial_values_are_uniform_and_every_part_has_the_bits_of_the_whole() -> None:
    model = section(features=400, widths=[300])
    name, shape = "trunk.blocks.0.linear.weight", (300, 400)
    whole = values_of(name, shape, torch.arange(300 * 400).view(shape), seed=3, model=model)
    bound = 1 / math.sqrt(400)
    assert 0.99 * bound < float(whole.abs().max()) <= bound
    assert float(whole.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    some = torch.tensor([[7, 399], [400, 119_999]])
    assert torch.equal(values_of(name, shape, some, seed=3, model=model), whole.view(-1)[some])
    assert not torch.equal(values_of(name, shape, some, seed=4, model=model), whole.view(-1)[some])
    assert not values_of("heads.0.output.bias", (4,), torch.arange(4), seed=3, model=model).any()


def test_matrices_are_sparse_and_biases_are_not() -> None:
    model = section(heads=2, blocks_in_head=1)
    shapes = shapes_of(model)
    assert {group_of(name) for name in shapes} == {"linear", "output"}
    budgets = plan_budgets(shapes, config(sparsity={"density": 0.5}).sparsity)
    assert set(budgets) == {name for name in shapes if name.endswith(".weight")}
    # 6x8 + 8x10 in the trunk, 10x12 + 12x4 in each head; half of them, up to the rounding of each of six layers.
    assert account(shapes, {}).per_token.total == 128 + 2 * 168
    assert abs(sum(budget.active for budget in budgets.values()) - (128 + 2 * 168) // 2) <= 3


def test_the_plan_counts_what_a_row_costs() -> None:
    plan = make_plan(config({"heads": 2, "blocks_in_head": 1}, sparsity={"density": 0.5}), 1)
    assert plan.flops_per_sample_dense == 6 * (128 + 2 * 168)
    assert plan.flops_per_sample_active == 6 * plan.accounts.sparse.active
    assert (plan.samples, plan.samples_per_step) == ("rows", 32)
    assert plan.accounts.all.total == 128 + 8 + 10 + 2 * (168 + 12 + 4)


@pytest.mark.parametrize(
    ("model", "sections", "words"),
    [
        ({"blocks_in_head": 4}, {}, "model.blocks_in_head: 4 exceeds the 3 hidden layers"),
        ({"widths": []}, {}, "model.widths: [] leaves no hidden layer"),
        ({"small_stem": True}, {}, "model.small_stem: True has no effect with model.family mlp"),
        ({"hidden": 64}, {}, "model.hidden: 64 has no effect with model.family mlp"),
        ({}, {"data": {"sequence_length": 8}}, "data.sequence_length: 8 has no effect with model.family mlp"),
        ({}, {"data": {"picture_size": 32}}, "data.picture_size: 32 has no effect with model.family mlp"),
        ({"family": "llama", "widths": [4]}, {}, "model.features: 6 has no effect with model.family llama"),
        ({}, {"parallel": {"tensor": 2}}, "parallel.tensor: 2 divides the matrix products of a llama, not of mlp"),
        ({}, {"parallel": {"activation_checkpoint": "selective"}}, "selective is of feed-forward layers, and mlp has"),
        (
            {},
            {"sparsity": {"density": 0.5, "backend": "block", "unit": 16, "balance": "line"}},
            "sparsity.backend: block is for layers without biases, and those of model.family: mlp have some",
        ),
        ({}, {"sparsity": {"density": 0.5, "unit": 16}}, "is not divisible into 16 x 16 blocks"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(
    model: dict[str, object], sections: dict[str, dict[str, object]], words: str
) -> None:
    assert any(words in line for line in problems(config(model, **sections))), problems(config(model, **sections))


def test_a_sparse_ensemble_is_no_problem() -> None:
    assert problems(config({"heads": 3, "blocks_in_head": 1}, sparsity={"density": 0.3}), world_size=2) == []
