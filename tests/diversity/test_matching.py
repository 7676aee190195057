"""The assignment against all permutations, and units that are found again after they were shuffled."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nt_pretrain.diversity.assignment import assign
from nt_pretrain.diversity.choice import chosen_units
from nt_pretrain.diversity.matching import correlations, match


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (4, 4), (6, 6), (3, 5), (1, 4)])
def test_the_assignment_is_the_best_of_all(rows: int, columns: int) -> None:
    draw = np.random.default_rng(rows * 10 + columns)
    for kind in range(30):
        # Whole numbers tie, which real ones never do.
        cost = (
            draw.normal(size=(rows, columns)) if kind % 2 else draw.integers(-3, 4, size=(rows, columns)).astype(float)
        )
        found = assign(cost)
        assert len(set(found.tolist())) == rows
        best = min(
            sum(cost[row, column] for row, column in enumerate(chosen))
            for chosen in itertools.permutations(range(columns), rows)
        )
        assert cost[np.arange(rows), found].sum() == pytest.approx(best, abs=1e-12)


def test_a_larger_assignment_cannot_be_bettered_by_any_swap_of_two() -> None:
    cost = np.random.default_rng(0).normal(size=(60, 60))
    found = assign(cost)
    own = cost[np.arange(60), found]
    swapped = cost[:, found]  # [i, j]: row i takes the column of row j
    assert (swapped + swapped.T >= own[:, None] + own[None, :] - 1e-12).all()
    assert own.sum() < cost.min(axis=1).sum() + 10


def test_costs_that_cannot_be_assigned() -> None:
    with pytest.raises(ValueError, match="3 rows for 2 columns"):
        assign(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no finite number"):
        assign(np.array([[np.nan]]))


def test_shuffled_units_are_found_again() -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(200, 2, 30, generator=draw)
    order = torch.randperm(30, generator=draw)
    noisy = 4.0 * table[..., order] + 0.3 * torch.randn(200, 2, 30, generator=draw) + 7.0
    found = match(table, noisy)
    assert torch.equal(order[found.partner], torch.arange(30))
    assert found.matched.min() > 0.99 and found.same.abs().mean() < 0.2
    assert match(table, table).same.tolist() == pytest.approx([1.0] * 30)


def test_a_unit_that_never_changes_correlates_with_nothing_and_is_chosen_last() -> None:
    table = torch.randn(50, 1, 6, generator=torch.Generator().manual_seed(0))
    silent = table.clone()
    silent[..., 2] = 0.1
    assert correlations(table, silent)[:, 2].abs().max() == 0
    for key in range(8):
        assert 2 not in chosen_units([table, silent], 5, key)
    assert chosen_units([table, silent], 9, 0) == [0, 1, 2, 3, 4, 5]
    assert len({tuple(chosen_units([table], 3, key)) for key in range(8)}) > 1
