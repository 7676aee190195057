"""Budgets that are the same for all lines of a layer: near to what was asked, and known to differ from it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.config.schema import ModelSection, SparsitySection
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.sparsity.block_budget import BlockBudget, overall, plan_block_budgets
from nt_pretrain.sparsity.budget import plan_budgets

MODEL = ModelSection(
    hidden=512, intermediate=1408, layers=8, attention_heads=8, heads=3, blocks_in_head=4, vocab_size=8192
)
SHAPES = shapes_of(MODEL)


def section(**options) -> SparsitySection:
    return SparsitySection(**{"density": 0.2, "unit": 64, "scope": "no_vocab"} | options)


def off(budgets: dict[str, BlockBudget]) -> float:
    """Active blocks less those asked for."""
    return sum(x.active - x.asked / x.unit**2 for x in budgets.values())


@pytest.mark.parametrize(
    ("unit", "density"), [(16, 0.15), (16, 0.9), (32, 0.15), (32, 0.37), (64, 0.2), (64, 0.9), (128, 0.37), (128, 0.9)]
)
def test_erk_is_kept_as_near_as_whole_fans_allow(unit, density):
    asked = plan_budgets(SHAPES, section(density=density, unit=1))
    budgets = plan_block_budgets(SHAPES, section(unit=unit, density=density))
    assert list(budgets) == list(asked)
    weights = sum(x.units for x in asked.values())
    for name, budget in budgets.items():
        assert budget.asked == asked[name].active and budget.units * unit**2 == asked[name].units
        assert 1 <= budget.fan <= budget.across and budget.active == budget.fan * budget.lines
        assert budget.density == budget.as_layer_budget().density
        assert budget.asked_density == asked[name].density
        if all(x.asked_density * x.across >= 1 for x in budgets.values()):
            assert abs(budget.fan - budget.asked_density * budget.across) < 1, name
    # A quantum is a block more in every line of one layer of the trunk, or of that layer of all three heads.
    quanta = [x.lines * (3 if name.startswith("heads.") else 1) for name, x in budgets.items() if x.fan < x.across]
    assert abs(off(budgets)) <= max(quanta) / 2
    wanted, found = overall(budgets)
    assert wanted == pytest.approx(density, abs=1e-6)
    assert abs(found - wanted) * weights == pytest.approx(abs(off(budgets)) * unit**2)


def test_heads_get_the_same_and_order_does_not_matter():
    budgets = plan_block_budgets(SHAPES, section())
    for name, budget in budgets.items():
        if name.startswith("heads.0."):
            for head in (1, 2):
                assert budgets[name.replace("heads.0.", f"heads.{head}.")] == budget
    names = list(SHAPES)
    random.Random(3).shuffle(names)
    assert plan_block_budgets({name: SHAPES[name] for name in names}, section()) == budgets


def test_columns_are_balanced_where_asked():
    down = [name for name in SHAPES if name.endswith("ffn.down.weight")]
    budgets = plan_block_budgets(SHAPES, section(), balances=dict.fromkeys(down, "col"))
    for name, budget in budgets.items():
        if name in down:
            assert budget.shape == (512, 1408) and (budget.lines, budget.across) == (22, 8)
        elif name.endswith("ffn.up.weight"):
            assert budget.shape == (1408, 512) and (budget.lines, budget.across) == (22, 8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shapes(data):
    unit = 16
    extents = st.integers(1, 24).map(lambda n: n * unit)
    shapes = {
        f"trunk.blocks.{i}.ffn.up.weight": data.draw(st.tuples(extents, extents))
        for i in range(data.draw(st.integers(1, 6)))
    }
    density = data.draw(st.floats(0.02, 1.0))
    distribution = data.draw(st.sampled_from(["erk", "uniform"]))
    balances = {name: data.draw(st.sampled_from(["row", "col"])) for name in shapes}
    options = section(unit=unit, density=density, distribution=distribution)
    lines = {name: shapes[name][0 if balances[name] == "row" else 1] // unit for name in shapes}
    asked = sum(x.active for x in plan_budgets(shapes, options.model_copy(update={"unit": 1})).values()) / unit**2
    if asked < sum(lines.values()):
        with pytest.raises(ValueError, match="one in each line of each layer makes"):
            plan_block_budgets(shapes, options, balances=balances)
        return
    try:
        budgets = plan_block_budgets(shapes, options, balances=balances)
    except ValueError as error:
        assert "layers that are dense and one block in each line of the others" in str(error)
        return
    assert sum(budget.asked for budget in budgets.values()) == asked * unit**2
    assert abs(off(budgets)) <= max(lines.values()) / 2
    assert all(1 <= budget.fan <= budget.across for budget in budgets.values())


def test_a_line_keeps_at_least_one_block_and_others_pay_for_it():
    shapes = {f"trunk.blocks.{i}.ffn.up.weight": s for i, s in enumerate([(4096, 64), (512, 4096), (640, 2048)])}
    budgets = plan_block_budgets(shapes, section(density=0.1, distribution="uniform"))
    first, *others = budgets.values()
    assert first.asked_density < 1 and first.fan == first.across == 1
    assert all(budget.density < budget.asked_density for budget in others) and abs(off(budgets)) <= 8 / 2


def test_impossible_budgets_say_why():
    with pytest.raises(ValueError, match=r"unit is 1, and single weights make no blocks"):
        plan_block_budgets(SHAPES, section(unit=1))
    with pytest.raises(
        ValueError, match=r"asks for [\d,.]+ active blocks of 128 x 128, and one in each line .* [\d,]+;"
    ):
        plan_block_budgets(SHAPES, section(unit=128, density=0.01))
    with pytest.raises(ValueError, match=r"trunk.final_norm.weight, which is no sparse layer"):
        plan_block_budgets(SHAPES, section(), balances={"trunk.final_norm.weight": "col"})
    with pytest.raises(ValueError, match="not divisible into 128 x 128 blocks"):
        plan_block_budgets({"trunk.blocks.0.ffn.up.weight": (192, 256)}, section(unit=128))
