"""Calibration errors against torchmetrics and direct computation, ties and edges included."""

import itertools
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from nt_pretrain.eval.calibration import (
    bin_of,
    classwise_error,
    equal_mass_error,
    equal_width_error,
    reliability,
)
from nt_pretrain.eval.classification import ClassificationSums
from nt_pretrain.eval.confidence_histogram import BUCKETS, bucket_of, histogram
from nt_pretrain.eval.members import pieces
from tests.eval.samples import made, nasty


def sums_of(logits: torch.Tensor, labels: torch.Tensor) -> ClassificationSums:
    sums = ClassificationSums.zeros(len(logits) + 2, classwise=logits.shape[-1])
    for piece in pieces(logits, labels):
        sums.add(piece)
    return sums


def by_hand(p: np.ndarray, correct: np.ndarray, groups: list[np.ndarray]) -> float:
    return sum(abs(correct[group].sum() - p[group].sum()) for group in groups) / len(p)


def widths(p: np.ndarray) -> list[np.ndarray]:
    """Bins (a, b] as in Guo et al."""
    edges = np.arange(16) / 15
    return [(p > a if a else p >= 0) & (p <= b) for a, b in itertools.pairwise(edges.tolist())]


def test_equal_width_against_torchmetrics():
    logits, labels = made(2000, 10)
    sums = sums_of(logits, labels)
    for head in range(3):
        p = logits[head].double().softmax(-1)
        expected = multiclass_calibration_error(p, labels, num_classes=10, n_bins=15, norm="l1")
        # torchmetrics bins in fp32 and puts an edge into the bin above it; random confidences meet no edge.
        assert equal_width_error(sums.bins[head]) == pytest.approx(float(expected), abs=1e-6)


def test_edges_belong_to_the_bin_below():
    # Guo et al. have bins ((b - 1) / 15, b / 15]. torchmetrics has [a, b), which puts 1 into a bin of its own.
    edges = torch.arange(16, dtype=torch.float64) / 15
    assert bin_of(edges).tolist() == [0, *range(15)]
    p = torch.tensor([1.0, 0.95], dtype=torch.float64)
    theirs = multiclass_calibration_error(torch.stack([p, 1 - p], 1), torch.tensor([1, 0]), num_classes=2, n_bins=15)
    logits = torch.stack([p, 1 - p], 1).log()[None]
    assert equal_width_error(sums_of(logits, torch.tensor([1, 0])).bins[0]) == pytest.approx(0.475)
    assert float(theirs) == pytest.approx(0.525, abs=1e-6)


def test_equal_mass_of_distinct_confidences_is_that_of_the_sorted_list():
    generator = torch.Generator().manual_seed(4)
    p = torch.rand(1500, dtype=torch.float64, generator=generator)
    while len(set(bucket_of(p).tolist())) < len(p):  # one sample in a bucket each
        p = torch.linspace(1e-6, 1 - 1e-6, 1500, dtype=torch.float64)[torch.randperm(1500, generator=generator)]
    correct = torch.rand(1500, dtype=torch.float64, generator=generator) < p.sqrt()
    order = np.argsort(p.numpy())
    expected = by_hand(p.numpy(), correct.numpy(), np.array_split(order, 15))
    assert equal_mass_error(histogram(p, correct)) == pytest.approx(expected, abs=1e-9)


def test_equal_mass_of_confidences_near_one_is_near_that_of_the_sorted_list():
    logits, labels = made(3001, 10, heads=1, sure=8.0)
    p, choice = logits[0].double().softmax(-1).max(-1)
    assert float((p > 0.99).double().mean()) > 0.5
    correct = (choice == labels).numpy()
    expected = by_hand(p.numpy(), correct, np.array_split(np.argsort(p.numpy(), kind="stable"), 15))
    assert equal_mass_error(sums_of(logits, labels).confidences[0]) == pytest.approx(expected, abs=1e-3)


def test_equal_mass_splits_ties_in_proportion():
    p = torch.full((30,), 0.7, dtype=torch.float64)
    correct = torch.arange(30) < 18
    for order in (torch.arange(30), torch.randperm(30, generator=torch.Generator().manual_seed(6))):
        # In any order of the input every bin has 60% right; a sorted list would have bins of 0% and of 100%.
        assert equal_mass_error(histogram(p, correct[order])) == pytest.approx(0.1, abs=1e-9)


def test_classwise_is_the_mean_of_the_errors_of_each_class():
    logits, labels = made(400, 5)
    sums = sums_of(logits, labels)
    p = logits[1].double().softmax(-1)
    expected = []
    for label in range(5):
        column, hit = p[:, label].numpy(), (labels == label).numpy()
        expected.append(by_hand(column, hit, widths(column)))
    assert classwise_error(sums.classwise[1]) == pytest.approx(float(np.mean(expected)), abs=1e-9)


@pytest.mark.parametrize("name", list(nasty()))
def test_nasty_inputs(name: str) -> None:
    logits, labels = nasty()[name]
    sums, kept = sums_of(logits, labels), labels != -100
    for head in range(3):
        p, choice = logits[head, kept].double().softmax(-1).max(-1)
        correct = (choice == labels[kept]).numpy()
        assert equal_width_error(sums.bins[head]) == pytest.approx(
            by_hand(p.numpy(), correct, widths(p.numpy())), abs=1e-8
        )
        assert 0.0 <= equal_mass_error(sums.confidences[head]) <= 1.0
        assert int(sums.confidences[head, :, 0].sum()) == int(kept.sum()) == int(sums.bins[head, :, 0].sum())
    if name == "probability 0 and 1":
        assert equal_mass_error(sums.confidences[0]) == 0.0 == classwise_error(sums.classwise[0])


def test_no_samples():
    sums = ClassificationSums.zeros(3, classwise=2)
    assert math.isnan(equal_width_error(sums.bins[0])) and math.isnan(equal_mass_error(sums.confidences[0]))
    assert math.isnan(classwise_error(sums.classwise[0])) and reliability(sums.bins[0]) == []


def test_buckets_rise_with_confidence_and_are_narrow():
    p = torch.cat([torch.logspace(-14, -0.31, 40_001, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0])])
    p = torch.cat([p, 1.0 - p]).sort().values
    bucket = bucket_of(p)
    assert (bucket.diff() >= 0).all() and int(bucket[0]) == 0 and int(bucket[-1]) == BUCKETS - 1
    last = torch.zeros(BUCKETS, dtype=torch.float64).scatter_reduce_(0, bucket, p, "amax")
    first = torch.ones(BUCKETS, dtype=torch.float64).scatter_reduce_(0, bucket, p, "amin")
    filled = bucket.bincount(minlength=BUCKETS) > 0
    inner = filled & (torch.arange(BUCKETS) > 0) & (torch.arange(BUCKETS) < BUCKETS - 1)
    width, rest = (last - first)[inner], torch.minimum(first, 1 - last)[inner]
    assert (width <= rest / 500).all()
