"""A histogram of confidences fine enough to stand for the sorted list, and small enough to add over ranks.

A sorted list of confidences can be merged, but grows with the samples; sums over a fixed grid do not. The buckets are
those of a floating-point number with 9 bits behind the leading one, of p below one half and of 1 - p above: 0.2% wide
relative to the smaller of the two, so that 0.9999 and 0.99999 are far apart. Samples of a bucket count as ties.
All that is computed from it (equal-mass bins, risk over coverage, AUROC) is exact for confidences rounded to buckets.
"""

from __future__ import annotations

import torch
from torch import Tensor

OCTAVES = 40
"""Powers of two on either side; confidences nearer to 0 or 1 than 2**-41 share a bucket with 0 or 1."""
STEPS = 512
"""Buckets of a power of two."""
BUCKETS = 2 * (OCTAVES * STEPS + 2)
COLUMNS = 3
"""Samples, correct ones, sum of confidences in units of 2**-32 (2**31 samples fit)."""
UNIT = 2.0**32


def bucket_of(p: Tensor) -> Tensor:
    """Bucket of each confidence in [0, 1] (fp64), rising with it: int64 of the same shape."""
    low = p < 0.5
    # A mantissa in [1/2, 1) and an exponent of -1 or less; one half itself has the exponent 0 and the largest number.
    mantissa, exponent = torch.frexp(torch.where(low, p, 1.0 - p))
    octave = OCTAVES + exponent.long()
    step = ((mantissa * 2.0 - 1.0) * STEPS).floor().long() + 1
    number = torch.where((mantissa == 0) | (octave < 0), 0, octave * STEPS + step)
    return torch.where(low, number, BUCKETS - 1 - number)


def histogram(confidence: Tensor, correct: Tensor) -> Tensor:
    """Table of confidences fp64 [N] and whether each was correct (bool [N]): int64 [BUCKETS, COLUMNS]."""
    table = torch.zeros(BUCKETS, COLUMNS, dtype=torch.int64, device=confidence.device)
    return table.index_add_(0, bucket_of(confidence), rows(confidence, correct))


def rows(confidence: Tensor, correct: Tensor) -> Tensor:
    """What each sample adds to its bucket or bin: int64 [N, COLUMNS]."""
    columns = (torch.ones_like(correct, dtype=torch.int64), correct.long(), (confidence * UNIT).round().long())
    return torch.stack(columns, dim=-1)
