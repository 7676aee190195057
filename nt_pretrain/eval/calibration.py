"""Expected calibration errors: how far confidence lies from accuracy, in three ways of binning.

Equal width: Naeini et al. (AAAI 2015), Guo et al. (ICML 2017, section 2), bins ((b - 1) / 15, b / 15]. Equal mass:
Nguyen and O'Connor (EMNLP 2015), Nixon et al. (CVPR workshops 2019). Classwise: Kull et al. (NeurIPS 2019), the static
calibration error of Nixon et al.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from nt_pretrain.eval.confidence_histogram import UNIT

BINS = 15
CLASSWISE = 1000
"""Most classes for which each class's own calibration is measured: of more the sums would be large, and say little."""


def bin_of(p: Tensor) -> Tensor:
    """Which of 15 bins of equal width holds each probability (fp64), right edges included; 0 is in the first."""
    edges = torch.arange(BINS + 1, dtype=torch.float64, device=p.device) / BINS
    # A guess, put right by a comparison with its edges: torch.bucketize took 50 times as long on some hundred numbers.
    guess = ((p * BINS).ceil().long() - 1).clamp_(0, BINS - 1)
    moved = guess - (p <= edges[guess]).long() + (p > edges[guess + 1]).long()
    return moved.clamp_(0, BINS - 1)


def class_bins(p: Tensor, labels: Tensor) -> Tensor:
    """For every class and bin of its probability: samples, those of the class, probability in units of 2**-32.

    [N, C] and [N] to int64 [C, 15, 3].
    """
    classes = p.shape[1]
    index = (torch.arange(classes, device=p.device) * BINS + bin_of(p)).flatten()
    hit = torch.nn.functional.one_hot(labels, classes).flatten()
    columns = torch.stack([torch.ones_like(hit), hit, (p * UNIT).round().long().flatten()], dim=-1)
    return columns.new_zeros(classes * BINS, 3).index_add_(0, index, columns).view(classes, BINS, 3)


def equal_width_error(bins: Tensor) -> float:
    """ECE, sum over bins of |B| / N * |accuracy(B) - confidence(B)|, of int64 [bins, 3]; nan without samples."""
    return _error([(Fraction(int(hit)), Fraction(int(total), int(UNIT))) for _, hit, total in bins.tolist()], bins)


def equal_mass_error(confidences: Tensor, bins: int = BINS) -> float:
    """ECE over bins that hold N / 15 samples each, in order of confidence; nan without samples.

    A bucket of the histogram (or a group of equal confidences) that lies across an edge is split in proportion:
    its samples are ties, and any other split would depend on the order they came in.
    """
    filled = confidences[confidences[:, 0] > 0].tolist()
    samples = sum(count for count, _, _ in filled)
    if not samples:
        return math.nan
    # In units of a sample / bins, in which edges are whole numbers: bin i begins at i * samples.
    correct: list[int | Fraction] = [0] * bins
    confidence: list[int | Fraction] = [0] * bins
    at = 0
    for count, hit, total in filled:
        whole, end = count * bins, at + count * bins
        while at < end:
            index = at // samples
            stop = min(end, samples * (index + 1))
            # As a rule all of it lies in one bin; integers add up faster than fractions.
            share = 1 if stop - at == whole else Fraction(stop - at, whole)
            correct[index] += hit * share
            confidence[index] += total * share
            at = stop
    shares = zip(map(Fraction, correct), (Fraction(each) / int(UNIT) for each in confidence), strict=True)
    return _error(list(shares), confidences)


def classwise_error(classwise: Tensor) -> float:
    """Mean over classes of the equal-width error of the class's own probability, of int64 [C, 15, 3]."""
    if not len(classwise):
        return math.nan
    errors = [equal_width_error(each) for each in classwise]
    return math.fsum(errors) / len(errors)


def reliability(bins: Tensor) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, samples) of every bin that has samples, for a reliability diagram."""
    return [(total / UNIT / count, hit / count, count) for count, hit, total in bins.tolist() if count]


def _error(parts: list[tuple[Fraction, Fraction]], bins: Tensor) -> float:
    samples = int(bins[:, 0].sum())
    if not samples:
        return math.nan
    return float(sum((abs(hit - confidence) for hit, confidence in parts), Fraction(0)) / samples)
