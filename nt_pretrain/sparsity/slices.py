"""Topologies of children: which units of a parent's layers a child keeps, exact counts on every sharding."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.counter_random import key_of
from nt_pretrain.methods.phase import Slice
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.sparsity.scores import code, magnitude_codes
from nt_pretrain.sparsity.topology import SparseLayer


def keep_slice(
    layers: list[SparseLayer], weights: dict[str, Tensor], active: dict[str, int], wanted: Slice, *,
    group: dist.ProcessGroup | None,
) -> None:  # fmt: skip
    """Cut the topologies of ``layers``, in place, down to the ``wanted`` slice of their active units. Collective.

    A function of (active units, weights, key, layer names) alone: slices that meet share no unit and leave none out.

    Args:
        layers: of single weights, with the parent's active units set.
        weights: this rank's shard of each layer's weight, by name.
        active: how many units of each layer are active, over all ranks.
        group: the ranks over which layers are sharded.
    """
    ends = [wanted.units(active[layer.name]) for layer in layers]
    codes = [_codes(layer, weights[layer.name], wanted) for layer in layers]
    first, last = (_largest(layers, codes, [end[i] for end in ends], wanted.key, group) for i in (0, 1))
    for layer, before, until, (begin, end) in zip(layers, first, last, ends, strict=True):
        torch.logical_and(until, ~before, out=layer.active)
        layer.explored.copy_(layer.active)
        layer.budget = replace(layer.budget, active=end - begin)


def _codes(layer: SparseLayer, weight: Tensor, wanted: Slice) -> Tensor:
    assert layer.unit == 1, "children keep single weights"
    if wanted.order == "magnitude":
        return magnitude_codes(weight, layer.active)
    return code(layer.random_bits(wanted.key, "slice"), layer.active)


def _largest(
    layers: list[SparseLayer], codes: list[Tensor], counts: list[int], key: int, group: dist.ProcessGroup | None
) -> list[Tensor]:
    pools = [_pool(layer, own, count, key) for layer, own, count in zip(layers, codes, counts, strict=True)]
    return select_largest(pools, group) if pools else []


def _pool(layer: SparseLayer, codes: Tensor, count: int, key: int) -> Pool:
    # Ties are broken alike for both ends of a slice, and for slices that meet.
    tie_key = key_of(key, "slice tie", layer.name)
    return Pool(layer.name, codes, lambda positions: layer.tie_breaker(positions, tie_key), count)
