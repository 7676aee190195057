"""Scores by which units are kept and grown: elementwise, local, mapped to integers that sort like the scores.

The bits of a non-negative fp32 number, read as an integer, sort like the number. Selection works on codes made of them,
so its result is exact and does not depend on how scores are distributed over ranks: 0 is no candidate, everything else
is the bits plus one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nt_pretrain.counter_random import CHUNK, exponential, key_of
from nt_pretrain.sparsity.topology import SparseLayer


def magnitude_codes(values: Tensor, candidates: Tensor) -> Tensor:
    """Codes (int32) of ``|values|`` for flat ``values`` (any float dtype) where the bool ``candidates`` is True."""
    codes = torch.empty(values.numel(), dtype=torch.int32, device=values.device)
    flat = values.reshape(-1)
    for start in range(0, codes.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        codes[part] = code(flat[part].abs().float().view(torch.int32), candidates[part])
    return codes


def soft_magnitude_codes(layer: SparseLayer, values: Tensor, *, temperature: float, key: tuple[object, ...]) -> Tensor:
    """Scores whose k largest are a draw of k active units without replacement with weights ``|values|**temperature``.

    CHTs (arXiv 2501.19107) as used by NeuroTrails. Successive sampling keeps the k largest of T log|w| + Gumbel, which
    is the k largest of |w|**T / E with E ~ Exponential(1) (Efraimidis and Spirakis 2006): one pass, no sort, and every
    variate is a function of ``key``, the layer and the unit.
    """
    return drawn_codes(values, layer.active, layer.unit_index, temperature=temperature, key=key_of(*key, layer.name))


def drawn_codes(
    values: Tensor, candidates: Tensor, unit_index: Callable[[Tensor], Tensor], *, temperature: float, key: int
) -> Tensor:
    """The same for any units: ``unit_index`` makes global unit numbers of positions in ``values``."""
    flat = values.reshape(-1)
    codes = torch.empty(flat.numel(), dtype=torch.int32, device=flat.device)
    for start in range(0, codes.numel(), CHUNK):
        stop = min(start + CHUNK, codes.numel())
        positions = torch.arange(start, stop, device=flat.device)
        # fp64: |w|**3 of small weights leaves the fp32 range.
        weight = flat[start:stop].abs().double().pow_(temperature)
        score = (weight / exponential(key, unit_index(positions))).clamp_(1e-38, 1e38).float()
        codes[start:stop] = code(score.view(torch.int32), candidates[start:stop])
    return codes


def code(bits: Tensor, candidates: Tensor) -> Tensor:
    """``bits + 1`` (int32, ``bits`` in [0, 2**31 - 1)) where the bool ``candidates`` is True, else 0."""
    # A nan may have all bits set but the sign's, as CUDA's own has; it sorts above infinity all the same.
    # Plain vector loops on int32: torch.where and products with bool measured two to three times slower on CPU.
    return bits.clamp(max=0x7FFFFFFE).add_(1).mul_(candidates.view(torch.uint8).to(torch.int32))
