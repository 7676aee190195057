"""Quality against the number of heads used: what an ensemble loses when heads are lost at inference.

For every k the mean over subsets of k heads, each an ensemble by the mean of probabilities. Up to 6 heads all subsets
count; beyond, the M windows of k neighbours in a ring, so that every head counts equally often.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.eval.classification import ranks_of
from nt_pretrain.eval.exact import COLUMNS, carried, fixed_sums, mean_of
from nt_pretrain.eval.members import Predictions, mean_probability, on_grid

ALL_SUBSETS = 6


def subsets(heads: int) -> list[tuple[int, ...]]:
    """Sets of heads that are tried, by rising size."""
    if heads <= ALL_SUBSETS:
        return [each for k in range(1, heads + 1) for each in itertools.combinations(range(heads), k)]
    rings = [tuple((start + i) % heads for i in range(k)) for k in range(1, heads) for start in range(heads)]
    return [*rings, tuple(range(heads))]


@dataclass
class HeadsUsedSums:
    """Sums over samples for S subsets of heads; int64, added element by element.

    ``counts`` [2]: samples, broken samples. ``correct`` [S]. ``nll`` [S, 4]: fixed-point sums.
    """

    counts: Tensor
    correct: Tensor
    nll: Tensor

    @staticmethod
    def zeros(heads: int, *, device: torch.device | str = "cpu") -> HeadsUsedSums:
        """Empty sums."""
        size = len(subsets(heads))
        return HeadsUsedSums(
            counts=torch.zeros(2, dtype=torch.int64, device=device),
            correct=torch.zeros(size, dtype=torch.int64, device=device),
            nll=torch.zeros(size, COLUMNS, dtype=torch.int64, device=device),
        )

    def add(self, piece: Predictions) -> None:
        """Add some samples."""
        device = self.counts.device
        self.counts += torch.tensor([len(piece.labels), piece.broken], device=device)
        correct, losses = [], []
        at = piece.labels[None, :, None].expand(piece.heads, -1, 1)
        label = piece.labels[:, None]
        at_label = piece.logp[: piece.heads].gather(-1, at)[..., 0]
        for chosen in subsets(piece.heads):
            correct.append((ranks_of(_ranked(piece, chosen), label) == 0).sum())
            losses.append(-mean_probability(at_label[list(chosen)]))
        self.correct += torch.stack(correct).to(device)
        self.nll = carried(self.nll + fixed_sums(torch.stack(losses)).to(device))


def _ranked(piece: Predictions, chosen: tuple[int, ...]) -> Tensor:
    """Scores [N, C] that order the classes for the ensemble of the heads ``chosen``."""
    if len(chosen) in (1, piece.heads):
        return piece.ranked[chosen[0] if len(chosen) == 1 else piece.heads]
    together = piece.p[chosen[0]].clone()
    for head in chosen[1:]:
        together += piece.p[head]
    return on_grid(together.div_(len(chosen)).log_())


def heads_used_values(sums: HeadsUsedSums, heads: int) -> list[dict[str, float]]:
    """For k = 1..M: ``heads``, and ``nll`` and ``accuracy`` with their least and largest over subsets, ``..._low`` and
    ``..._high``; nan without samples or with broken ones.
    """
    samples, broken = (int(value) for value in sums.counts)
    count = 0 if broken else samples
    rows = []
    for k in range(1, heads + 1):
        members = [index for index, chosen in enumerate(subsets(heads)) if len(chosen) == k]
        row: dict[str, float] = {"heads": k}
        nll = [mean_of(sums.nll[index], count) for index in members]
        accuracy = [int(sums.correct[index]) / count if count else math.nan for index in members]
        for name, values in (("nll", nll), ("accuracy", accuracy)):
            row |= {name: sum(values) / len(values), f"{name}_low": min(values), f"{name}_high": max(values)}
        rows.append(row)
    return rows
