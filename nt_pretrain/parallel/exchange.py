"""Exchanges between ranks that the backward pass reverses.

List forms of the collectives are used: they exist under one name in every version of torch and on every backend.
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
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim)


def scattered_sum(x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """:func:`scatter_sum` of a tensor that needs no gradient."""
    world = width(group)
    if world == 1:
        return x
    parts = [part.contiguous() for part in x.chunk(world, dim)]
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(own, parts, group=group)
    return own


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
