"""The ensemble of the heads that are left when one is lost at inference (mean of probabilities).

Its sums are those of :mod:`nt_pretrain.eval.heads_used` for M - 1 heads, which hold every set that lacks one head.
"""

from __future__ import annotations

import math

from nt_pretrain.eval.exact import mean_of
from nt_pretrain.eval.heads_used import HeadsUsedSums, subsets


def lost_head_values(sums: HeadsUsedSums, heads: int) -> list[dict[str, float]]:
    """For each head of M: ``lost`` (its number), ``accuracy`` and ``nll`` of the ensemble without it, and
    ``accuracy_change`` and ``nll_change`` against the ensemble of all. Empty for one head; nan without samples or with
    broken ones.
    """
    if heads == 1:
        return []
    samples, broken = (int(value) for value in sums.counts)
    count = 0 if broken else samples
    tried = [frozenset(chosen) for chosen in subsets(heads)]

    def values(chosen: frozenset[int]) -> tuple[float, float]:
        index = tried.index(chosen)
        return int(sums.correct[index]) / count if count else math.nan, mean_of(sums.nll[index], count)

    everyone = frozenset(range(heads))
    whole_accuracy, whole_nll = values(everyone)
    rows = []
    for lost in range(heads):
        accuracy, nll = values(everyone - {lost})
        change = {"accuracy_change": accuracy - whole_accuracy, "nll_change": nll - whole_nll}
        rows.append({"lost": lost, "accuracy": accuracy, "nll": nll, **change})
    return rows
