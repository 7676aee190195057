"""Scores by which units are kept and grown: elementwise, local, mapped to integers that sort like the scores.

The bits of a non-negative fp32 number, read as an integer, sort like the number. Selection works on these integers, so
its result is exact and does not depend on how scores are distributed over ranks. ``-1`` marks a unit that is no
candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.counter_random import CHUNK, exponential, key_of
from nt_pretrain.sparsity.topology import SparseLayer


def magnitude_bits(values: Tensor, candidates: Tensor) -> Tensor:
    """Sortable bits (int32) of ``|values|`` for flat ``values`` (any float dtype), -1 where ``candidates`` is False."""
    bits = torch.empty(values.numel(), dtype=torch.int32, device=values.device)
    flat = values.reshape(-1)
    for start in range(0, bits.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        bits[part] = exclude(flat[part].abs().float().view(torch.int32), candidates[part])
    return bits


def soft_magnitude_bits(layer: SparseLayer, values: Tensor, *, temperature: float, key: tuple[object, ...]) -> Tensor:
    """Scores whose k largest are a draw of k active units without replacement with weights ``|values|**temperature``.

    CHTs (arXiv 2501.19107) as used by NeuroTrails. Successive sampling keeps the k largest of T log|w| + Gumbel, which
    is the k largest of |w|**T / E with E ~ Exponential(1) (Efraimidis and Spirakis 2006): one pass, no sort, and every
    variate is a function of ``key``, the layer and the unit.
    """
    draw_key = key_of(*key, layer.name)
    flat = values.reshape(-1)
    bits = torch.empty(flat.numel(), dtype=torch.int32, device=flat.device)
    for start in range(0, bits.numel(), CHUNK):
        stop = min(start + CHUNK, bits.numel())
        positions = torch.arange(start, stop, device=flat.device)
        # fp64: |w|**3 of small weights leaves the fp32 range.
        weight = flat[start:stop].abs().double().pow_(temperature)
        score = (weight / exponential(draw_key, layer.unit_index(positions))).clamp_(1e-38, 1e38).float()
        bits[start:stop] = exclude(score.view(torch.int32), layer.active[start:stop])
    return bits


def exclude(bits: Tensor, candidates: Tensor) -> Tensor:
    """``bits`` (int32, non-negative) with -1 where the bool ``candidates`` is False."""
    # (b + 1) * flag - 1 is a plain vector loop; torch.where on bool measured three times slower on CPU.
    return (bits + 1) * candidates - 1
