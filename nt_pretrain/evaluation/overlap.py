"""How much the topologies of the heads of a sharded model overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.eval.gather import summed_over_ranks
from nt_pretrain.eval.mask_overlap import mask_counts, mask_overlap
from nt_pretrain.models.groups import part_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.topology import SparseLayer


def topology_overlap(layers: list[SparseLayer], heads: int, ranks: Ranks) -> tuple[Tensor, Tensor] | None:
    """Jaccard index of every pair of heads over all their sparse layers, and its expectation for random masks of the
    same densities: both fp64 [M, M]; None where heads have no sparse layers or there is one head. Collective.

    Every rank holds all heads, cut alike.
    """
    groups: dict[str, list[SparseLayer]] = {}
    for layer in layers:
        if (part := part_of(layer.name)) != "trunk":
            groups.setdefault(layer.name.removeprefix(part), []).append(layer)
    if heads < 2 or not groups:
        return None
    counts, places = [], []
    for same in groups.values():
        assert len(same) == heads
        whole = mask_counts(torch.stack([layer.active for layer in same]))
        # Tables of blocks are whole on every rank.
        counts.append(whole * (not same[0].is_replicated or ranks.rank == 0))
        places.append(same[0].budget.units)
    return mask_overlap(summed_over_ranks(torch.stack(counts), ranks), torch.tensor(places))
