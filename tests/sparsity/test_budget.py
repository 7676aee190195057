"""Erdos-Renyi-Kernel budgets against the figures that follow from the paper's definition."""

import math
import random

import pytest
import torch

from nt_pretrain.config.schema import ModelSection, SparsitySection
from nt_pretrain.models.multihead import build
from nt_pretrain.sparsity.budget import erk_densities, plan_budgets

LLAMA130M = ModelSection(heads=3, blocks_in_head=8)
LLAMA350M = ModelSection(hidden=1024, intermediate=2736, layers=24, attention_heads=16, heads=3, blocks_in_head=16)
LLAMA1B = ModelSection(hidden=2048, intermediate=5461, layers=24, attention_heads=32, heads=3, blocks_in_head=16)


def shapes_of(model: ModelSection) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in build(model).named_parameters()}


@pytest.mark.parametrize(
    ("model", "density", "layers", "attention", "ffn", "vocabulary", "active"),
    [
        (LLAMA130M, 0.9, 200, 1.0, 0.977820, 0.728209, 266_836_378),
        (LLAMA350M, 0.9, 396, 1.0, 0.910352, 0.683624, 752_969_318),
        (LLAMA350M, 0.8, 396, 1.0, 0.7633, 0.5732, None),
        (LLAMA350M, 0.7, 396, 0.9356, 0.6429, 0.4828, None),
        (LLAMA350M, 0.5, 396, 0.6683, 0.4592, 0.3448, None),
        (LLAMA1B, 0.9, 396, 1.0, 0.880504, 0.681339, None),
    ],
)
def test_erk_of_the_papers_models(model, density, layers, attention, ffn, vocabulary, active):
    budgets = plan_budgets(shapes_of(model), SparsitySection(density=density))
    assert len(budgets) == layers
    digits = 6 if active or model is LLAMA1B else 4
    for name, expected in (
        ("trunk.blocks.0.attention.query.weight", attention),
        ("heads.2.blocks.3.ffn.up.weight", ffn),
        ("trunk.embedding.weight", vocabulary),
        ("heads.1.output.weight", vocabulary),
    ):
        assert budgets[name].density == pytest.approx(expected, abs=1.1 * 10**-digits), name
    if active:  # each of the layers is rounded to a whole number of weights
        assert abs(sum(budget.active for budget in budgets.values()) - active) <= layers / 2


def test_budget_sums_to_the_density_and_ignores_order():
    shapes = shapes_of(LLAMA130M)
    section = SparsitySection(density=0.37)
    budgets = plan_budgets(shapes, section)
    total = sum(budget.units for budget in budgets.values())
    assert abs(sum(budget.active for budget in budgets.values()) - 0.37 * total) <= len(budgets)
    names = list(shapes)
    random.Random(1).shuffle(names)
    assert plan_budgets({name: shapes[name] for name in names}, section) == budgets
    by_shape: dict[tuple[int, ...], set[int]] = {}
    for budget in budgets.values():
        by_shape.setdefault(budget.shape, set()).add(budget.active)
        assert 1 <= budget.active <= budget.units
    assert all(len(active) == 1 for active in by_shape.values())


def test_erk_counts_kernel_dimensions():
    """ResNet-like: a 3 x 3 convolution has four terms in its score."""
    shapes = {"a": (64, 64, 3, 3), "b": (256, 64, 1, 1)}
    densities = erk_densities(shapes, 0.1)
    ratio = (sum(shapes["a"]) / math.prod(shapes["a"])) / (sum(shapes["b"]) / math.prod(shapes["b"]))
    assert densities["a"] / densities["b"] == pytest.approx(ratio)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(densities[n] * sizes[n] for n in shapes) == pytest.approx(0.1 * sum(sizes.values()))


def test_scopes_and_group_densities():
    shapes = shapes_of(LLAMA130M)
    heads = plan_budgets(shapes, SparsitySection(density=0.5, scope="heads"))
    assert heads and all(name.startswith("heads.") for name in heads)
    blocks = plan_budgets(shapes, SparsitySection(density=0.5, scope="head_blocks"))
    assert blocks and set(blocks) == {name for name in heads if "output" not in name and "embedding" not in name}
    no_vocabulary = plan_budgets(shapes, SparsitySection(density=0.5, scope="no_vocab"))
    assert not [name for name in no_vocabulary if "embedding" in name or "output" in name]
    fixed = plan_budgets(shapes, SparsitySection(density=0.5, group_density={"embedding": 1.0, "output": 0.25}))
    assert fixed["trunk.embedding.weight"].density == 1.0
    assert fixed["heads.0.output.weight"].density == 0.25
    total = sum(budget.units for budget in fixed.values())
    assert sum(budget.active for budget in fixed.values()) / total == pytest.approx(0.5, abs=1e-5)
    uniform = plan_budgets(shapes, SparsitySection(density=0.5, distribution="uniform"))
    assert {round(budget.density, 6) for budget in uniform.values()} == {0.5}


def test_impossible_budgets_say_why():
    shapes = shapes_of(LLAMA130M)
    with pytest.raises(ValueError, match=r"leaves density -.* for the other layers"):
        plan_budgets(shapes, SparsitySection(density=0.2, group_density={"output": 1.0, "embedding": 1.0}))
    with pytest.raises(ValueError, match=r"shape \[2736, 1024\] is not divisible into 32 x 32 blocks"):
        plan_budgets(shapes_of(LLAMA350M), SparsitySection(density=0.5, unit=32))
