"""Exchanges between ranks that the backward pass reverses.

Methods of the process group are called: torch's functions for whole tensors have other names from version to version,
and those for lists of tensors, which do not, copy everything once more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Parts of all ranks of ``group`` along ``dim``, in their order; backward sums what belongs to this rank's part."""
    return _Gather.apply(x, dim, group)


def scatter_sum(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part along ``dim`` of the sum over ``group``; backward gathers the gradients of all parts."""
    return _ScatterSum.apply(x, dim, group)


def sum_gradient(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``x`` itself; backward sums its gradient over ``group``."""
    return _SumGradient.apply(x, group)


def gathered(x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """:func:`gather` of a tensor that needs no gradient."""
    world = width(group)
    if world == 1:
        return x
    if _is_channels_last(x, dim):
        return gathered(x.permute(0, 2, 3, 1), 0, group).permute(0, 3, 1, 2)
    first = x.movedim(dim, 0).contiguous()
    whole = first.new_empty(world * first.shape[0], *first.shape[1:])
    assert group is not None
    group._allgather_base(whole, first).wait()
    return whole.movedim(0, dim).contiguous()


def scattered_sum(x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """:func:`scatter_sum` of a tensor that needs no gradient."""
    world = width(group)
    if world == 1:
        return x
    if _is_channels_last(x, dim):
        return scattered_sum(x.permute(0, 2, 3, 1), 0, group).permute(0, 3, 1, 2)
    first = x.movedim(dim, 0).contiguous()
    own = first.new_empty(first.shape[0] // world, *first.shape[1:])
    assert group is not None
    group._reduce_scatter_base(own, first, dist.ReduceScatterOptions()).wait()
    return own.movedim(0, dim).contiguous()


def _is_channels_last(x: Tensor, dim: int) -> bool:
    """Whether ``x`` is maps [B, C, Y, X] that lie in memory as [B, Y, X, C], and shall go on doing so."""
    return x.ndim == 4 and dim == 0 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def width(group: dist.ProcessGroup | None) -> int:
    """Ranks of ``group``; None is this rank alone."""
    return 1 if group is None else dist.get_world_size(group)


def summed(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over ``group``, in place."""
    if width(group) > 1:
        dist.all_reduce(x, group=group)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return gathered(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return scattered_sum(gradients[0], ctx.dim, ctx.group), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return scattered_sum(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gathered(gradients[0], ctx.dim, ctx.group), None, None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
