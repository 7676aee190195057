"""Linear CKA: what it must not see, and what it must."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.diversity.cka import centred_gram, cka, cka_matrix


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def likeness(first: torch.Tensor, second: torch.Tensor) -> float:
    return cka(centred_gram(first), centred_gram(second))


def test_a_layer_is_like_itself_however_it_is_turned_scaled_and_shifted() -> None:
    table = numbers(60, 12, seed=0)
    turn, _ = torch.linalg.qr(numbers(12, 12, seed=1))
    assert likeness(table, table) == pytest.approx(1.0, abs=1e-12)
    assert likeness(table, 3.0 * table @ turn + 5.0) == pytest.approx(1.0, abs=1e-9)


def test_a_map_that_is_no_rotation_is_seen() -> None:
    table = numbers(60, 12, seed=0)
    stretched = table * torch.logspace(0, 3, 12, dtype=torch.float64)
    assert likeness(table, stretched) < 0.5


def test_independent_features_are_unlike_also_with_more_units_than_samples() -> None:
    first, second = numbers(50, 800, seed=0), numbers(50, 400, seed=1)
    assert abs(likeness(first, second)) < 0.05
    # The plain estimator, which the unbiased one is there for, calls them alike.
    one, two = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (first, second))
    assert float((one * two).sum() / (one.norm() * two.norm())) > 0.8


def test_it_is_the_unbiased_estimator_written_out() -> None:
    first, second = numbers(9, 4, seed=2), numbers(9, 7, seed=3) + numbers(9, 1, seed=2)

    def hsic(x: torch.Tensor, y: torch.Tensor) -> float:
        n = len(x)
        a, b = x @ x.T, y @ y.T
        a.fill_diagonal_(0.0)
        b.fill_diagonal_(0.0)
        one = torch.ones(n, dtype=x.dtype)
        terms = torch.trace(a @ b) + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return float((terms - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3)))

    expected = hsic(first, second) / math.sqrt(hsic(first, first) * hsic(second, second))
    assert likeness(first, second) == pytest.approx(expected, abs=1e-10)


def test_places_of_maps_count_as_units_and_pairs_are_symmetric() -> None:
    tables = [numbers(20, 3, 5, seed=0), numbers(20, 3, 5, seed=1)]
    matrix = cka_matrix([centred_gram(table) for table in tables])
    assert torch.equal(matrix, matrix.T) and matrix.diagonal().tolist() == pytest.approx([1.0, 1.0])
    assert matrix[0, 1] == pytest.approx(likeness(tables[0].flatten(1), tables[1].flatten(1)))


def test_too_few_samples_and_units_that_never_change() -> None:
    with pytest.raises(ValueError, match="3 samples: a similarity of representations needs 4 at least"):
        centred_gram(numbers(3, 5, seed=0))
    assert math.isnan(likeness(torch.ones(8, 3), numbers(8, 3, seed=0)))
