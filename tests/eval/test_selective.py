"""Risk and coverage against sorting; ties in every order at once."""

import itertools
import math

import numpy as np
import pytest
import torch

from nt_pretrain.eval.confidence_histogram import bucket_of, histogram
from nt_pretrain.eval.selective import area_under_risk_coverage, risk_coverage


def area(wrong: np.ndarray) -> float:
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


def test_area_of_a_sorted_list():
    generator = torch.Generator().manual_seed(7)
    p = torch.linspace(0.001, 0.999, 700, dtype=torch.float64)
    assert len(set(bucket_of(p).tolist())) == 700
    p = p[torch.randperm(700, generator=generator)]
    correct = torch.rand(700, dtype=torch.float64, generator=generator) < p
    wrong = ~correct.numpy()[np.argsort(-p.numpy())]
    assert area_under_risk_coverage(histogram(p, correct)) == pytest.approx(area(wrong), rel=1e-12)
    coverage, risk = risk_coverage(histogram(p, correct))
    assert coverage.tolist() == pytest.approx(np.arange(1, 701) / 700)
    assert risk.tolist() == pytest.approx(np.cumsum(wrong) / np.arange(1, 701))


def test_ties_count_as_the_mean_over_all_their_orders():
    p = torch.tensor([0.9, 0.6, 0.6, 0.6, 0.6, 0.3], dtype=torch.float64)
    correct = torch.tensor([True, False, True, False, True, False])
    orders = itertools.permutations([1, 0, 1, 0])
    expected = np.mean([area(np.array([0, *order, 1])) for order in orders])
    assert area_under_risk_coverage(histogram(p, correct)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("right", "expected"), [(True, 0.0), (False, 1.0)])
def test_all_right_and_all_wrong(right: bool, expected: float) -> None:
    for p in (torch.ones(5), torch.zeros(5), torch.linspace(0, 1, 5)):
        assert area_under_risk_coverage(histogram(p.double(), torch.full((5,), right))) == pytest.approx(expected)


def test_no_samples():
    empty = histogram(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    assert math.isnan(area_under_risk_coverage(empty)) and risk_coverage(empty)[0].tolist() == []
