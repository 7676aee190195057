"""Which units are dead, which of their weights go, and when: functions of numbers alone."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.stripping import dead_units, lowered, most_negative, window_position


def test_the_most_negative_weights_go_and_not_the_smallest() -> None:
    row = torch.tensor([[0.01, -3.0, 2.0, -0.5, -0.02, -4.0, 0.3, 0.0, 1.0, -1.0]])
    everything = torch.ones_like(row, dtype=torch.bool)
    gone = most_negative(row, everything, 0.2)
    assert gone.nonzero()[:, 1].tolist() == [1, 5]
    assert most_negative(-row, everything, 0.2).nonzero()[:, 1].tolist() == [2, 8]


@pytest.mark.parametrize("quantile", [0.0, 0.05, 0.1, 0.25, 0.5, 0.99])
def test_as_many_go_as_lie_below_the_quantile_of_torch(quantile: float) -> None:
    for count in (1, 2, 3, 21, 64, 101):
        values = torch.randn(5, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
        gone = most_negative(values, torch.ones(5, count, dtype=torch.bool), quantile)
        # torch interpolates in floating point: a place that should be whole may come out a little above or below.
        exact = (quantile * 100 * (count - 1)) % 100 == 0
        if not exact:
            assert torch.equal(gone, values < values.quantile(quantile, dim=1, keepdim=True)), count
        assert (gone.sum(1) == math.ceil(round(quantile * 100) * (count - 1) / 100)).all(), count
        assert (~gone).any(1).all(), "a row keeps one weight at least"


def test_what_is_not_active_neither_goes_nor_counts() -> None:
    values = torch.tensor([[-9.0, -8.0, -1.0, 0.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    active = torch.tensor([[False, False, True, True, True], [False] * 5])
    assert most_negative(values, active, 0.5).nonzero().tolist() == [[0, 2]]


def test_of_equal_weights_the_first_go() -> None:
    values = torch.full((3, 40), -1.0, dtype=torch.bfloat16)
    gone = most_negative(values, torch.ones(3, 40, dtype=torch.bool), 0.25)
    assert [row.nonzero().view(-1).tolist() for row in gone] == [list(range(10))] * 3


def test_a_large_layer_is_done_in_parts_with_the_same_result() -> None:
    values = torch.randn(700, 2000, generator=torch.Generator().manual_seed(0))
    active = values.abs() > 0.2
    rows = [0, 1, 520, 699]
    assert torch.equal(most_negative(values, active, 0.05)[rows], most_negative(values[rows], active[rows], 0.05))


def test_a_unit_is_dead_if_it_was_never_active_or_in_no_larger_share_than_the_threshold() -> None:
    active = torch.tensor([0, 1, 9, 10, 11, 1000])
    assert dead_units(active, 1000, 0.0).tolist() == [True, False, False, False, False, False]
    assert dead_units(active, 1000, 0.01).tolist() == [True, True, True, True, False, False]


def test_the_window_ends_with_the_step_of_the_removal() -> None:
    config = Config.model_validate({"stripping": {"every_steps": 5, "window_steps": 2}})
    assert [window_position(config, step) for step in range(1, 12)] == [0, 0, 0, 1, 2, 0, 0, 0, 1, 2, 0]
    whole = Config.model_validate({"stripping": {"every_steps": 3}})
    assert [window_position(whole, step) for step in range(1, 8)] == [1, 2, 3, 1, 2, 3, 1]
    assert window_position(Config(), 7) == 0


def test_a_planned_budget_is_lowered_by_what_was_stripped() -> None:
    planned = {
        "a": LayerBudget((4, 5), 1, 20, 12),
        "b": LayerBudget((4, 5), 1, 20, 3),
        "c": LayerBudget((4, 5), 1, 20, 7),
    }
    before = {
        "a": LayerBudget((4, 5), 1, 20, 9, 4),
        "b": LayerBudget((4, 5), 1, 20, 2, 8),
        "c": LayerBudget((4, 5), 1, 20, 7),
    }
    found = lowered(planned, before)
    assert [(each.active, each.stripped, each.possible) for each in found.values()] == [
        (8, 4, 16),
        (1, 8, 12),
        (7, 0, 20),
    ]
