"""Cross-entropy of an output layer whose vocabulary is cut over ranks: full logits exist nowhere.

The loss of :mod:`nt_pretrain.models.loss`, with the maximum and the sum of the softmax and the target's logit agreed on
by two small all-reduces a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.models.loss import IGNORED, statistics_dtype


class _VocabularyCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, chunk: int, group: dist.ProcessGroup
    ) -> Tensor:
        wide = statistics_dtype(weight_VH)
        total = torch.zeros((), dtype=wide, device=hidden_NH.device)
        hidden_grad, weight_grad = torch.empty_like(hidden_NH), torch.zeros_like(weight_VH, dtype=wide)
        mine = targets_N - dist.get_rank(group) * weight_VH.shape[0]
        for start in range(0, hidden_NH.shape[0], chunk):
            part = slice(start, start + chunk)
            ignored = (targets_N[part] == IGNORED)[:, None]
            column = mine[part][:, None]
            elsewhere = (column < 0) | (column >= weight_VH.shape[0])
            column = column.masked_fill(elsewhere, 0)
            logits = (hidden_NH[part] @ weight_VH.t()).to(wide)
            highest = logits.amax(1, keepdim=True)
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
            logits -= highest
            at_target = logits.gather(1, column).masked_fill_(elsewhere, 0.0)
            grad = logits.exp_()
            sums = torch.cat([grad.sum(1, keepdim=True), at_target], dim=1)
            dist.all_reduce(sums, group=group)
            total -= (sums[:, 1:] - sums[:, :1].log()).masked_fill_(ignored, 0.0).sum()
            # d loss / d logits = softmax - onehot, zero in ignored rows.
            grad /= sums[:, :1]
            grad.scatter_add_(1, column, elsewhere.to(wide) - 1)
            grad.masked_fill_(ignored, 0.0)
            narrow = grad.to(weight_VH.dtype)
            torch.mm(narrow, weight_VH, out=hidden_grad[part])
            weight_grad += narrow.t() @ hidden_NH[part]
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight_VH.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0]
        return hidden_grad * scale.to(hidden_grad.dtype), weight_grad * scale.to(weight_grad.dtype), None, None, None


def vocabulary_cross_entropy_sum(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, *, chunk: int, group: dist.ProcessGroup
) -> Tensor:
    """Sum over tokens of the cross-entropy (nats), the same on all ranks of ``group``.

    Args:
        hidden_NH: [N, H], the same on all ranks; its gradient is this rank's share, to be summed over the group.
        weight_VH: [V / t, H], this rank's rows of the output layer.
        targets_N: [N] int64 over the whole vocabulary; rows with IGNORED do not count.
        chunk: rows whose logits exist at once.

    Returns:
        Scalar, fp32 (fp64 for fp64 weights). Differentiable once.
    """
    return _VocabularyCrossEntropy.apply(hidden_NH, weight_VH, targets_N, chunk, group)
