"""Sums over ranks whose result does not depend on the number of ranks or on the order of addition."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor


def reduce_over(
    tensor: Tensor, group: dist.ProcessGroup | None, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> None:
    """All-reduce ``tensor`` in place over the ranks of ``group``. One rank alone leaves it as it is, without waking the
    threads of the process group, which takes longer than a step of a tiny network.
    """
    if dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, op=op, group=group)


def sum_integers(values: list[int], group: dist.ProcessGroup | None, device: torch.device) -> list[int]:
    """Element-wise sum over ranks of integers, modulo 2**64 (as signed 64-bit numbers)."""
    table = torch.tensor(values, dtype=torch.int64, device=device)
    if group is not None and values and dist.get_world_size(group) > 1:
        dist.all_reduce(table, group=group)
    return [int(value) for value in table.tolist()]


def fixed_point_scales(
    tensors: list[Tensor], terms: list[int], power: int, group: dist.ProcessGroup | None
) -> list[float]:
    """For each tensor the power of two by which ``|x|**power`` may be multiplied so that ``terms`` of them fit an
    int64.

    The scale comes from the largest magnitude over all ranks, hence is the same everywhere; nan where a value is not
    finite.
    """
    largest = [t.abs().max().double() if t.numel() else torch.zeros((), dtype=torch.float64) for t in tensors]
    # A maximum over ranks may lose a nan, but not an infinity.
    table = torch.stack([value.to(tensors[0].device) for value in largest]).nan_to_num(nan=math.inf, posinf=math.inf)
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=group)
    scales = []
    for value, count in zip(table.tolist(), terms, strict=True):
        if value == 0.0 or not math.isfinite(value):
            scales.append(1.0 if value == 0.0 else math.nan)
            continue
        exponent = math.frexp(value)[1] * power
        shift = 61 - math.ceil(math.log2(max(count, 1))) - exponent
        # Beyond the range of fp64 (which only fp64 values reach): tiny ones lose digits, huge ones have no square.
        scales.append(math.ldexp(1.0, min(shift, 1023)) if shift > -1022 else math.nan)
    return scales


def exact_sums(
    tensors: list[Tensor], terms: list[int], group: dist.ProcessGroup | None, *, power: int = 1
) -> list[float]:
    """For each tensor the sum over all its elements on all ranks of ``|x|**power`` (1 or 2).

    Values are turned into 64-bit fixed point before they are added, so the result is the same bits for every sharding;
    what is lost lies 2**-45 or more below the largest element. The sum is nan where an element is not finite.

    Args:
        tensors: this rank's parts.
        terms: upper bound of the number of elements over all ranks, for each tensor.
    """
    if not tensors:
        return []
    scales = fixed_point_scales(tensors, terms, power, group)
    sums = []
    for tensor, scale in zip(tensors, scales, strict=True):
        total = torch.zeros((), dtype=torch.int64, device=tensor.device)
        for part in tensor.reshape(-1).split(1 << 16):
            wide = part.abs().double()
            total += (wide * wide * scale if power == 2 else wide * scale).to(torch.int64).sum()
        sums.append(total)
    table = torch.stack(sums)
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(table, group=group)
    # A scale of nan turns the meaningless integers of values that are not finite into nan.
    return [value / scale for value, scale in zip(table.tolist(), scales, strict=True)]
