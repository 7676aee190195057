"""Which unit of one voice does what a unit of another does: units matched by the correlation of their activations.

Li et al. 2015 (arXiv 1511.07543): correlations over probe samples (and places of maps), then the one-to-one matching
with the largest sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.diversity.assignment import assign

UNITS = 512
"""Units that are matched, at most: the first so many of a layer. A matching costs the cube of them."""


@dataclass(frozen=True)
class Matching:
    """Units of one voice and their partners in another.

    Attributes:
        partner: int64 [n], the unit of the second voice.
        matched: fp64 [n], its correlation.
        same: fp64, correlation with the unit of the same number.
        units: how many were compared; fewer than there are in wide layers.
    """

    partner: Tensor
    matched: Tensor
    same: Tensor
    units: int


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of every unit of one with every unit of another, fp64 [n, m], from activations [N, places, n] and
    [N, places, m] of the same samples; 0 where a unit never changes.
    """
    return _standard(first).T @ _standard(second)


def match(first: Tensor, second: Tensor) -> Matching:
    """The best one-to-one matching of the units of two layers as wide as each other, by their activations."""
    units = min(first.shape[-1], second.shape[-1], UNITS)
    table = correlations(first[..., :units], second[..., :units])
    partner = torch.from_numpy(assign(-table.numpy()))
    return Matching(partner, table[torch.arange(units), partner], table.diagonal().clone(), units)


def _standard(table: Tensor) -> Tensor:
    flat = table.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    length = flat.norm(dim=0)
    still = length <= 1e-9 * flat.abs().amax().clamp_min(1e-300)
    return flat / length.masked_fill(still, float("inf"))
