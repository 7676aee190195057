"""How much the masks of heads overlap, against what random masks of the same densities would.

The Jaccard index of two masks is |A and B| / |A or B|. Random masks of densities d and e over n places share n d e of
them in expectation; with equal densities the index is then about d / (2 - d).
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_counts(masks: Tensor) -> Tensor:
    """Places where both of two masks are active, bool [M, ...] to int64 [M, M]; the diagonal has their sizes.

    Counts of shards of a layer add up to the layer's.
    """
    flat = masks.flatten(1)
    counts = torch.zeros(len(flat), len(flat), dtype=torch.int64, device=masks.device)
    for first in range(len(flat)):
        for second in range(first + 1):
            counts[first, second] = counts[second, first] = (flat[first] & flat[second]).sum()
    return counts


def mask_overlap(counts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Jaccard index of every pair of heads, and its expectation for random masks layer by layer: both fp64 [M, M].

    Args:
        counts: int64 [layers, M, M] of :func:`mask_counts`.
        places: int64 [layers], elements of each layer.

    An index is nan where both masks are empty. The expectation is the ratio of expected counts, which differs from
    the expected ratio by about 1 / places.
    """
    sizes = counts.diagonal(dim1=1, dim2=2)
    either = sizes[:, :, None] + sizes[:, None, :]
    product = sizes[:, :, None].double() * sizes[:, None, :].double()
    shared = (product / places[:, None, None].double().clamp_min(1.0)).sum(0)
    jaccard = counts.sum(0).double() / (either - counts).sum(0).double()
    expected = shared / (either.sum(0).double() - shared)
    # A mask always equals itself.
    expected.diagonal().copy_(jaccard.diagonal())
    return jaccard, expected
