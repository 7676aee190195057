"""Cross-entropy of an output layer whose vocabulary is cut over ranks: full logits exist nowhere.

The loss of :mod:`nt_pretrain.models.loss`, with the maximum and the sum of the softmax and the target's logit agreed on
by two small all-reduces a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.models.loss import IGNORED, OutputMatrix, statistics_dtype


class _VocabularyCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight: Tensor,
        matrix: OutputMatrix,
        targets_N: Tensor,
        chunk: int,
        group: dist.ProcessGroup,
    ) -> Tensor:
        wide = statistics_dtype(weight)
        total = torch.zeros((), dtype=wide, device=hidden_NH.device)
        hidden_grad = torch.empty_like(hidden_NH)
        held = matrix.rows
        mine = targets_N - dist.get_rank(group) * held
        for start in range(0, hidden_NH.shape[0], chunk):
            part = slice(start, start + chunk)
            ignored = (targets_N[part] == IGNORED)[:, None]
            column = mine[part][:, None]
            elsewhere = (column < 0) | (column >= held)
            column = column.masked_fill(elsewhere, 0)
            logits = matrix.logits(hidden_NH[part]).to(wide)
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
            narrow = grad.to(weight.dtype)
            matrix.hidden_gradient_(narrow, hidden_grad[part])
            matrix.add_weight_gradient(narrow, hidden_NH[part])
        ctx.save_for_backward(hidden_grad, matrix.weight_gradient())
        ctx.matrix = matrix
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0]
        ctx.matrix.backward(scale)
        return (
            hidden_grad * scale.to(hidden_grad.dtype),
            weight_grad * scale.to(weight_grad.dtype),
            None,
            None,
            None,
            None,
        )


def vocabulary_cross_entropy_sum(
    hidden_NH: Tensor,
    weight: Tensor,
    matrix: OutputMatrix,
    targets_N: Tensor,
    *,
    chunk: int,
    group: dist.ProcessGroup,
) -> Tensor:
    """Sum over tokens of the cross-entropy (nats), the same on all ranks of ``group``.

    Args:
        hidden_NH: [N, H], the same on all ranks; its gradient is this rank's share, to be summed over the group.
        weight: of this rank's V / t rows of the output layer; gets the gradient.
        matrix: what multiplies with it.
        targets_N: [N] int64 over the whole vocabulary; rows with IGNORED do not count.
        chunk: rows whose logits exist at once.

    Returns:
        Scalar, fp32 (fp64 for fp64 weights). Differentiable once.
    """
    return _VocabularyCrossEntropy.apply(hidden_NH, weight, matrix, targets_N, chunk, group)
