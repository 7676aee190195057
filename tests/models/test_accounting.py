"""Counts of the paper's models and the arithmetic of a token, by formulas written a second time."""

from __future__ import annotations

import pytest

from nt_pretrain.config.schema import ModelSection, SparsitySection
from nt_pretrain.models.accounting import (
    Count,
    account,
    attention_flops_per_token,
    attention_heads_of_all_blocks,
    flops_per_token,
    shapes_of,
)
from nt_pretrain.sparsity.budget import plan_budgets

M130 = ModelSection(heads=3, blocks_in_head=8)
M350 = ModelSection(hidden=1024, intermediate=2736, layers=24, attention_heads=16, heads=3, blocks_in_head=16)
M9 = ModelSection(hidden=128, intermediate=352, layers=4, attention_heads=4, heads=3, blocks_in_head=2)


@pytest.mark.parametrize(
    ("model", "total", "per_token"),
    [
        (M350, 836_750_336, 803_864_576),
        (M350.model_copy(update={"heads": 1}), 367_969_280, 335_151_104),
        (M350.model_copy(update={"blocks_in_head": 24}), 1_103_907_840, 3 * 335_151_104),
        (M130, 296_530_176, 271_908_864),
        (M130.model_copy(update={"heads": 1}), 134_105_856, 109_510_656),
        (M9, 17_992_064, None),
    ],
)
def test_dense_counts(model: ModelSection, total: int, per_token: int | None) -> None:
    found = account(shapes_of(model), {})
    assert found.all == Count(total, total)
    assert found.sparse == Count()
    if per_token is not None:
        assert found.per_token.total == per_token


@pytest.mark.parametrize(
    ("model", "active", "per_token", "densities"),
    [
        (
            M350,
            753_087_078,
            730_568_316,
            {"attention": 1.0, "ffn": 0.910352, "embedding": 0.683624, "output": 0.683624},
        ),
        (
            M130,
            266_881_690,
            248_939_902,
            {"attention": 1.0, "ffn": 0.977820, "embedding": 0.728209, "output": 0.728209},
        ),
    ],
)
def test_active_counts_of_the_paper(
    model: ModelSection, active: int, per_token: int, densities: dict[str, float]
) -> None:
    shapes = shapes_of(model)
    found = account(shapes, plan_budgets(shapes, SparsitySection(density=0.9)))
    # Budgets are rounded to whole weights per layer: half a weight for each of a few hundred layers.
    assert abs(found.all.active - active) <= len(shapes) / 2
    assert abs(found.per_token.active - per_token) <= len(shapes) / 2
    assert {group: found.by_group[group].density for group in densities} == pytest.approx(densities, abs=1e-6)
    assert found.by_group["norm"].density == 1.0


def test_groups_and_parts_both_add_up() -> None:
    shapes = shapes_of(M9)
    found = account(shapes, plan_budgets(shapes, SparsitySection(density=0.5, unit=16)))
    assert sum(found.by_group.values(), Count()) == sum(found.by_part.values(), Count()) == found.all
    assert list(found.by_part) == ["trunk", "heads.0", "heads.1", "heads.2"]
    assert found.by_part["heads.0"] == found.by_part["heads.2"]
    matrices = found.all.total - found.by_group["norm"].total
    assert found.sparse.total == matrices
    assert found.per_token.total == matrices - found.by_group["embedding"].total


def test_a_block_counts_all_its_weights() -> None:
    shapes = {"trunk.blocks.0.ffn.up.weight": (64, 128)}
    found = account(shapes, plan_budgets(shapes, SparsitySection(density=0.25, unit=32)))
    assert found.all == Count(8192, 2048)


def test_a_deep_ensemble_has_no_trunk() -> None:
    found = account(shapes_of(M9.model_copy(update={"blocks_in_head": 4})), {})
    assert list(found.by_part) == ["heads.0", "heads.1", "heads.2"]


def test_operations_of_a_token() -> None:
    # Every product of attention, counted one by one: a token meets (T + 1) / 2 keys on average, here T / 2.
    hidden, length = M9.hidden, 256
    scores = 2 * hidden * length / 2
    weighted = 2 * hidden * length / 2
    forward_and_backward = 3 * (scores + weighted)
    assert attention_heads_of_all_blocks(M9) == (2 + 3 * 2) * M9.attention_heads
    assert attention_flops_per_token(M9, length) == forward_and_backward * 8
    assert flops_per_token(1000, 50) == 6050
