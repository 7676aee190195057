"""Accuracy, likelihood, Brier score and what calibration needs, of every member: integer sums over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.eval import confidence_histogram
from nt_pretrain.eval.calibration import BINS, bin_of, class_bins
from nt_pretrain.eval.exact import COLUMNS, carried, fixed_sums, mean_of, row_sum
from nt_pretrain.eval.members import Predictions

TOP = 5


@dataclass
class ClassificationSums:
    """Sums over the samples seen so far, for P members; all int64, so two of them add up element by element.

    ``counts`` [2]: samples, broken samples. ``correct`` [P, 2]: label is the first choice, is among the first 5.
    ``nll`` and ``brier`` [P, 4]: fixed-point sums. ``bins`` [P, 15, 3]: samples, correct ones and confidence (in
    units of 2**-32) by equal widths of confidence. ``confidences`` [P, buckets, 3]: the same in fine buckets.
    ``classwise`` [P, C, 15, 3]: the same of every class's probability, or C = 0 where it is not wanted.
    """

    counts: Tensor
    correct: Tensor
    nll: Tensor
    brier: Tensor
    bins: Tensor
    confidences: Tensor
    classwise: Tensor

    @staticmethod
    def zeros(members: int, *, classwise: int = 0, device: torch.device | str = "cpu") -> ClassificationSums:
        """Empty sums of P members; ``classwise`` is the number of classes, 0 to leave classwise calibration out."""

        def table(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        return ClassificationSums(
            counts=table(2),
            correct=table(members, 2),
            nll=table(members, COLUMNS),
            brier=table(members, COLUMNS),
            bins=table(members, BINS, 3),
            confidences=table(members, confidence_histogram.BUCKETS, confidence_histogram.COLUMNS),
            classwise=table(members, classwise, BINS, 3),
        )

    def add(self, piece: Predictions) -> None:
        """Add some samples."""
        device = self.counts.device
        at = piece.labels[None, :, None].expand(len(piece.p), -1, 1)
        rank = ranks_of(piece.ranked, at)
        correct_PN = rank == 0
        p_label = piece.p.gather(-1, at)[..., 0]
        brier = (row_sum(piece.p * piece.p) - 2.0 * p_label + 1.0).clamp_min(0.0)
        confidence = piece.p.amax(-1)
        self.counts += torch.tensor([len(piece.labels), piece.broken], device=device)
        self.correct += torch.stack([correct_PN.sum(1), (rank < TOP).sum(1)], dim=1).to(device)
        self.nll = carried(self.nll + fixed_sums(-piece.logp.gather(-1, at)[..., 0]).to(device))
        self.brier = carried(self.brier + fixed_sums(brier).to(device))
        for member, (p, correct) in enumerate(zip(confidence, correct_PN, strict=True)):
            rows = confidence_histogram.rows(p, correct).to(device)
            self.bins[member].index_add_(0, bin_of(p).to(device), rows)
            self.confidences[member].index_add_(0, confidence_histogram.bucket_of(p).to(device), rows)
            if self.classwise.shape[1]:
                self.classwise[member] += class_bins(piece.p[member], piece.labels).to(device)


def ranks_of(scores: Tensor, at: Tensor) -> Tensor:
    """How many classes come before class ``at`` [..., 1] by scores [..., C]; among equals the lower index is first,
    as ``argmax`` has it.
    """
    own = scores.gather(-1, at)
    earlier = torch.arange(scores.shape[-1], device=scores.device) < at
    return ((scores > own) | ((scores == own) & earlier)).sum(-1)


def classification_values(sums: ClassificationSums, member: int) -> dict[str, float]:
    """``accuracy``, ``accuracy_top5``, ``nll`` (nats), ``perplexity`` and ``brier`` of one member.

    Everything is nan without samples or with broken ones.
    """
    samples, broken = (int(count) for count in sums.counts)
    count = 0 if broken else samples
    first, five = (int(value) for value in sums.correct[member])
    nll = mean_of(sums.nll[member], count)
    return {
        "accuracy": first / count if count else math.nan,
        "accuracy_top5": five / count if count else math.nan,
        "nll": nll,
        "perplexity": perplexity(nll),
        "brier": mean_of(sums.brier[member], count),
    }


def perplexity(nll: float) -> float:
    """exp of a loss in nats; inf where that is no fp64 number."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
