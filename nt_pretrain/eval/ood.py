"""Telling samples of another distribution apart by the confidence they get.

The score is the largest probability (Hendrycks and Gimpel, ICLR 2017, section 2); samples of the known distribution are
the positive class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nt_pretrain.eval import confidence_histogram
from nt_pretrain.eval.members import predictions


def confidence_counts(logits: Tensor) -> tuple[Tensor, int]:
    """How often each member is how sure of samples without labels: int64 [M + 2, buckets], and the broken samples.

    Args:
        logits: [M, N, C]; small enough to be held in fp64 a few times.
    """
    said = predictions(logits, torch.zeros(logits.shape[1], dtype=torch.int64, device=logits.device))
    bucket = confidence_histogram.bucket_of(said.p.amax(-1))
    counts = torch.zeros(len(bucket), confidence_histogram.BUCKETS, dtype=torch.int64, device=logits.device)
    return counts.scatter_add_(1, bucket, torch.ones_like(bucket)), said.broken


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that a known sample gets more confidence than a foreign one, ties counting half; 1 is best.

    Args:
        inside, outside: counts int64 [buckets] of known and of foreign samples, by rising confidence.
    """
    known, foreign = int(inside.sum()), int(outside.sum())
    if not known or not foreign:
        return math.nan
    below = outside.cumsum(0) - outside
    # Twice the wins, so that a tie is a whole number; Python's integers have no end.
    twice = sum(
        count * (2 * less + equal)
        for count, less, equal in zip(inside.tolist(), below.tolist(), outside.tolist(), strict=True)
        if count
    )
    return twice / (2 * known * foreign)


def fpr95(inside: Tensor, outside: Tensor) -> float:
    """Share of foreign samples accepted at the highest threshold that accepts 95% of the known; 0 is best.

    Args:
        inside, outside: as in :func:`auroc`.
    """
    known, foreign = int(inside.sum()), int(outside.sum())
    if not known or not foreign:
        return math.nan
    accepted = inside.flip(0).cumsum(0)
    threshold = int((accepted * 100 >= known * 95).nonzero()[0])
    return int(outside.flip(0)[: threshold + 1].sum()) / foreign
