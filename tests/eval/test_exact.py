"""Fixed-point sums: right, the same bits in every order, and honest about what is no number."""

import math
from fractions import Fraction

import pytest
import torch

from nt_pretrain.eval.exact import carried, fixed_sums, mean_of, row_sum


def test_sums_are_right_to_the_rounding_of_each_term():
    x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e3
    exact = sum((Fraction(value) for value in x.tolist()), Fraction(0)) / len(x)
    assert mean_of(fixed_sums(x), len(x)) == pytest.approx(float(exact), abs=2.0**-41)


def test_order_and_pieces_leave_no_trace():
    x = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).exp()
    whole = fixed_sums(x)
    assert torch.equal(fixed_sums(x.flip(0)), whole)
    for size in (1, 7, 640):
        assert torch.equal(carried(sum(fixed_sums(part) for part in x.split(size))), whole)
    # The sum of fp64 numbers itself does depend on the order: the test could fail.
    assert len({float(sum(part)) for part in (x.tolist(), x.flip(0).tolist(), x.sort().values.tolist())}) > 1


def test_negative_numbers_and_carries():
    x = torch.tensor([-0.25, -1.75, 0.999999, 3.0], dtype=torch.float64)
    assert mean_of(fixed_sums(x), 4) == pytest.approx(float(x.mean()), abs=1e-12)
    assert (fixed_sums(x.repeat(1000))[1] >= 0) and int(fixed_sums(x.repeat(1000))[1]) < 1 << 40


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, math.inf], math.inf), ([1e12, 1.0], math.inf), ([math.nan, math.inf], math.nan), ([], math.nan)],
)
def test_what_is_no_number_is_told(values: list[float], expected: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    assert mean_of(fixed_sums(x), len(values)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 31, 1000, 300_001])
def test_row_sums_do_not_depend_on_the_rows_beside(columns: int) -> None:
    x = torch.rand(9, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = row_sum(x)
    assert whole == pytest.approx(x.sum(-1))
    # Tensor.sum splits a single long row over threads, but not several.
    assert torch.equal(torch.cat([row_sum(row[None]) for row in x]), whole)
