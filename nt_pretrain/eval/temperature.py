"""Temperature scaling: one scalar for each member that makes it say what it knows, fitted on held-out samples.

Guo et al. (ICML 2017, section 4.2): probabilities are softmax(scores / T) with the T of the least NLL. For the
ensembles the scores are those of the pooled prediction ("pool, then calibrate": Rahaman and Thiery, NeurIPS 2021). The
NLL is convex in 1 / T; Newton's method in fp64 finds its least in some passes over the samples and keeps none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.eval.exact import COLUMNS, carried, fixed_sums, mean_of, row_sum
from nt_pretrain.eval.members import Predictions, pieces

LEAST, LARGEST = 1e-2, 1e2
"""Temperatures that are tried; samples that are all right (or all wrong) have none of their own."""
PASSES = 40
PRECISION = 1e-7
"""Relative change of a temperature at which the fit ends; the error left is about its square."""
FLAT = 1e-9
"""Curvature (of the mean NLL in nats) below which nothing is decided: sums are rounded at 4.6e-13."""

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Temperatures:
    """Fitted ``values`` fp64 [M + 2] in the order of the members, the ``samples`` and the ``passes`` it took.

    ``undecided`` names members (by index) that the samples give no temperature: the least NLL lies at an end of the
    range tried, or is reached where the NLL is flat.
    """

    values: Tensor
    samples: int
    passes: int
    undecided: tuple[int, ...]


def fit_temperatures(batches: Batches, heads: int, add_up: Callable[[Tensor], Tensor] = lambda x: x) -> Temperatures:
    """Temperatures of the members with the least NLL over all samples.

    Args:
        batches: gives the same batches of (logits [M, ..., C], labels [...]) every time it is called.
        add_up: the sum over ranks of an int64 tensor, where each rank has a part of the samples.

    Raises:
        ValueError: there are no samples with a label, or some have a logit that is nan or +inf.
    """
    members = heads + 2
    inverse = torch.ones(members, dtype=torch.float64)
    low, high = [1.0 / LARGEST] * members, [1.0 / LEAST] * members
    done, flat = [False] * members, [False] * members
    samples = passes = 0
    while not all(done) and passes < PASSES:
        passes += 1
        table = add_up(_derivatives(batches(), inverse))
        samples, broken = (int(value) for value in table[-1, 0, :2])
        if not samples or broken:
            raise ValueError(
                f"temperatures cannot be fitted: of {samples} samples with a label, {broken} have a logit that is nan "
                "or +inf; give held-out samples with labels and a model whose outputs are finite"
            )
        for member in range(members):
            slope, curvature = (mean_of(column, samples) for column in table[member])
            at = float(inverse[member])
            # A convex function: its least lies downhill.
            low[member], high[member] = (at, high[member]) if slope < 0 else (low[member], at)
            new = _next(at, slope, curvature, low[member], high[member])
            done[member] = abs(new - at) <= PRECISION * at or slope == 0
            inverse[member] = at if slope == 0 else new
            flat[member] = slope == 0 and curvature < FLAT
    ends = [beta < 1.001 / LARGEST or beta > 0.999 / LEAST for beta in inverse.tolist()]
    undecided = tuple(member for member in range(members) if ends[member] or flat[member])
    return Temperatures(1.0 / inverse, samples, passes, undecided)


def _next(at: float, slope: float, curvature: float, low: float, high: float) -> float:
    """Newton's step where it stays between the bounds, else their geometric mean."""
    new = at - slope / curvature if curvature > 0.0 else math.nan
    return new if low < new < high else math.sqrt(low * high)


def _derivatives(batches: Iterable[tuple[Tensor, Tensor]], inverse: Tensor) -> Tensor:
    """Sums of the first and second derivative of the NLL by 1 / T: int64 [P + 1, 2, COLUMNS].

    The last row holds the samples and the broken ones.
    """
    total = torch.zeros(len(inverse) + 1, 2, COLUMNS, dtype=torch.int64)
    for logits, labels in batches:
        for piece in pieces(logits, labels, 1.0 / inverse):
            total[:-1] += _of_piece(piece, inverse).cpu()
            total[-1, 0, :2] += torch.tensor([len(piece.labels), piece.broken])
            total[:-1] = carried(total[:-1])
    return total


def _of_piece(piece: Predictions, inverse: Tensor) -> Tensor:
    # Scores relative to the label's, before division by T: d NLL / d beta is their mean under p, the second
    # derivative their variance. A class of probability 0 has no part, whatever its score.
    at = piece.labels[None, :, None].expand(len(piece.p), -1, 1)
    beta = inverse.to(piece.p)[:, None, None]
    relative = torch.where(piece.p > 0, (piece.scores - piece.scores.gather(-1, at)) / beta, 0.0)
    mean = row_sum(piece.p * relative)
    variance = row_sum(piece.p * relative * relative) - mean * mean
    return torch.stack([fixed_sums(mean), fixed_sums(variance.clamp_min(0.0))], dim=1)
