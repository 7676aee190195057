"""Batch norms on several ranks: whose micro-batch normalises, and running statistics that all ranks share.

By default a norm normalises with the micro-batch of its own rank; one of a head under head parallelism with those of
all ranks of its head group, which the head is given together. Its running statistics are then averaged over ranks
after each step, so that they are the same everywhere and a checkpoint holds one of each. Synchronised
(``parallel.batch_norm: all``), it normalises with the micro-batches of all ranks together and sees the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nt_pretrain.models.loss import statistics_dtype
from nt_pretrain.parallel.exchange import gathered, summed, width

STATISTICS = ("running_mean", "running_var")
"""The buffers that count: torch's number of batches has no effect while the momentum is a number."""


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    """All batch norms inside ``module``, in the order of their names."""
    return [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics of all batch norms inside ``model`` by name, live."""
    return {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in STATISTICS}


def average_statistics(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Replace the running statistics inside ``module`` by their means over ``group``. Collective, one message.

    The mean of moving averages is the moving average of the means. Of the variances it leaves out how far the ranks'
    means lie apart, which is what each rank's own norm leaves out too.
    """
    world, buffers = width(group), list(statistics_of(module).values())
    if world == 1 or not buffers:
        return
    total = summed(torch.cat(buffers), group).div_(world)
    torch._foreach_copy_(buffers, total.split([len(each) for each in buffers]))


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """While activations are computed again for the backward pass; running statistics moved the first time."""
    before = [(buffer, buffer.clone()) for buffer in statistics_of(module).values()]
    try:
        yield
    finally:
        for buffer, value in before:
            # Past autograd, which would take it for a change of what the backward pass about to run has saved.
            buffer.data.copy_(value)


def synchronise(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Let the batch norms inside ``module`` normalise, in training, with what all ranks of ``group`` are given."""
    for norm in norms_of(module):
        # The forward is replaced, not the module: names of parameters and buffers stay.
        norm.forward = partial(_synchronised, norm, group)  # type: ignore[method-assign]


def _synchronised(norm: nn.BatchNorm2d, group: dist.ProcessGroup, x_BCYX: Tensor) -> Tensor:
    if not norm.training or width(group) == 1:
        return nn.BatchNorm2d.forward(norm, x_BCYX)
    # Micro-batches are equally large on all ranks, so nothing has to be asked, or waited for, to know this.
    count = x_BCYX.numel() // x_BCYX.shape[1] * width(group)
    mean, variance = _moments(x_BCYX, group)
    if norm.track_running_stats:
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        unbiased = variance * (count / max(1, count - 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    return _Normalise.apply(x_BCYX, norm.weight, norm.bias, mean, variance, norm.eps, count, group)


@torch.no_grad()
def _moments(x_BCYX: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel [C] over all ranks.

    From the ranks' own means and variances, not from sums of squares, which cancel.
    """
    wide = statistics_dtype(x_BCYX)
    variance, mean = torch.var_mean(x_BCYX.to(wide), dim=(0, 2, 3), correction=0)
    means, variances = gathered(torch.stack([mean, variance])[None], 0, group).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _Normalise(torch.autograd.Function):
    """Batch norm with given moments; backward knows that the moments come from the inputs of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, count: int,
        group: dist.ProcessGroup,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count, ctx.group = count, group
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)

        def over(channels: Tensor) -> Tensor:
            return channels[None, :, None, None]

        normal = (x.to(mean.dtype) - over(mean)) * over(inverse)
        by_bias, by_weight = gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))
        # Gradients of weight and bias are this rank's own: they are reduced like those of every other parameter.
        mean_gradient, mean_product = summed(torch.stack([by_bias, by_weight]), ctx.group) / ctx.count
        inner = gradient - over(mean_gradient) - normal * over(mean_product)
        by_x = (inner * over(weight.to(mean.dtype) * inverse)).to(x.dtype)
        return by_x, by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None, None, None, None
