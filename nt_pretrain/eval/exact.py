"""Sums of real numbers that are the same bits in whatever order and pieces the numbers arrive.

Every number is rounded once to a multiple of 2**-40 (an error of at most 4.6e-13) and kept as integers: its whole
part and its fraction. Integers add up exactly, so batches, ranks and the order of samples leave no trace, and a sum
over ranks is one all_reduce of int64. This needs that a sample's number does not depend on its neighbours either:
:func:`row_sum` adds in a fixed tree, and all else here is elementwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRACTION_BITS = 40
COLUMNS = 4
"""Of a fixed-point sum: whole parts, fractions in units of 2**-40, infinite terms, undefined terms."""
LARGEST = 2.0**30
"""A term beyond this is counted as infinite: a loss of a billion nats says no more."""
CHUNK = 1 << 22
"""Fractions that surely fit an int64 when they are added."""


def fixed_sums(x: Tensor) -> Tensor:
    """Sums over the last dimension: fp64 [..., N] to int64 [..., COLUMNS]."""
    total = torch.zeros(*x.shape[:-1], COLUMNS, dtype=torch.int64, device=x.device)
    for part in x.split(CHUNK, dim=-1):
        undefined = part.isnan()
        infinite = (part.abs() > LARGEST) & ~undefined
        finite = torch.where(undefined | infinite, 0.0, part)
        whole = finite.floor()
        fraction = ((finite - whole) * 2.0**FRACTION_BITS).round()
        columns = (whole.long(), fraction.long(), infinite.long(), undefined.long())
        total = carried(total + torch.stack([column.sum(-1) for column in columns], dim=-1))
    return total


def carried(sums: Tensor) -> Tensor:
    """The same sums with every fraction below one, so that many of them may be added again."""
    carry = sums[..., 1] >> FRACTION_BITS
    rest = sums[..., 1] & ((1 << FRACTION_BITS) - 1)
    return torch.stack([sums[..., 0] + carry, rest, sums[..., 2], sums[..., 3]], dim=-1)


def mean_of(sums: Tensor, count: int) -> float:
    """Mean of ``count`` numbers from their sum [COLUMNS], correctly rounded; nan without numbers or with undefined
    ones, inf with infinite ones.
    """
    whole, fraction, infinite, undefined = (int(value) for value in sums.tolist())
    if undefined or not count:
        return math.nan
    if infinite:
        return math.inf
    # Python divides integers with one rounding.
    return ((whole << FRACTION_BITS) + fraction) / (count << FRACTION_BITS)


def row_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension by folding it in halves: [..., C] to [...].

    ``Tensor.sum`` may add in another order for another number of rows; additions of whole tensors cannot.
    """
    if not x.shape[-1]:
        return x.new_zeros(x.shape[:-1])
    while (size := x.shape[-1]) > 1:
        half = size // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat([folded, x[..., -1:]], dim=-1) if size % 2 else folded
    return x[..., 0]
