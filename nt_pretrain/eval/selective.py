"""Selective prediction: what is wrong among the answers a model is most sure of.

Risk and coverage: El-Yaniv and Wiener (JMLR 2010); the area under their curve: Geifman, Uziel and El-Yaniv (ICLR 2019,
section 2). Samples of equal confidence are taken in a random order, in expectation, exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def risk_coverage(confidences: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and risk (share wrong among the covered), surest first, after each group of ties; fp64, equally long.

    Args:
        confidences: int64 [buckets, 3] of :func:`nt_pretrain.eval.confidence_histogram.histogram`.
    """
    count, wrong = _surest_first(confidences)
    covered, lost = count.cumsum(0), wrong.cumsum(0)
    return covered.double() / covered[-1:].double(), lost.double() / covered.double()


def area_under_risk_coverage(confidences: Tensor) -> float:
    """AURC, the mean over n = 1..N of the risk among the n surest; 0 is best, nan without samples."""
    count, wrong = _surest_first(confidences)
    if not len(count):
        return math.nan
    before = (count.cumsum(0) - count).double()
    wrong_before = (wrong.cumsum(0) - wrong).double()
    rate = wrong.double() / count.double()
    # The expected risk at n is (wrong_before + rate (n - before)) / n; over a group 1/n sums to harmonic numbers.
    harmonic = _harmonic(before + count) - _harmonic(before)
    total = wrong.double() + (wrong_before - rate * before) * harmonic
    return math.fsum(total.tolist()) / int(count.sum())


def _surest_first(confidences: Tensor) -> tuple[Tensor, Tensor]:
    filled = confidences[confidences[:, 0] > 0].flip(0).cpu()
    return filled[:, 0], filled[:, 0] - filled[:, 1]


def _harmonic(n: Tensor) -> Tensor:
    """1 + 1/2 + ... + 1/n less Euler's constant."""
    return torch.digamma(n + 1.0)
