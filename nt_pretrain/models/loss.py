"""Cross-entropy of a linear output layer without the full logits.

The fp32 logits of a head, [tokens, vocabulary], are the largest tensor of a small model. They are made a chunk of
tokens at a time; the gradient of the chunk's logits is formed in place at once and folded into the gradients of the
hidden states and the weight, so that no logits survive the forward pass and nothing is computed twice.

torch 2.13 has ``F.linear_cross_entropy`` with chunking. On CPU it took 2 to 5 times as long as this function at a
vocabulary of 32,000, and in bf16 it accumulates the sum of the losses in bf16 (8.88 instead of 10.40 at 1,024 tokens),
so it is not used; ``docs/PERFORMANCE.md`` has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Target that counts neither in the loss nor in the number of targets."""


def statistics_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of logits and sums: fp32, for fp64 weights fp64."""
    return torch.promote_types(weight.dtype, torch.float32)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        wide = statistics_dtype(weight_VH)
        total = torch.zeros((), dtype=wide, device=hidden_NH.device)
        wants_gradient = hidden_NH.requires_grad or weight_VH.requires_grad
        hidden_grad = torch.empty_like(hidden_NH) if wants_gradient else None
        # Summed over chunks in fp32 also under bf16: the chunks' contributions differ in size.
        weight_grad = torch.zeros_like(weight_VH, dtype=wide) if wants_gradient else None
        for start in range(0, hidden_NH.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden, targets = hidden_NH[part], targets_N[part]
            ignored = (targets == IGNORED)[:, None]
            column = targets.clamp_min(0)[:, None]
            logp = torch.log_softmax((hidden @ weight_VH.t()).to(wide), dim=-1)
            total -= logp.gather(1, column).masked_fill_(ignored, 0.0).sum()
            if hidden_grad is None or weight_grad is None:
                continue
            # d loss / d logits = softmax - onehot, zero in ignored rows.
            grad = logp.exp_()
            grad.scatter_add_(1, column, torch.full_like(column, -1, dtype=grad.dtype))
            grad.masked_fill_(ignored, 0.0)
            grad = grad.to(weight_VH.dtype)
            torch.mm(grad, weight_VH, out=hidden_grad[part])
            if grad.dtype == weight_grad.dtype:
                weight_grad.addmm_(grad.t(), hidden)
            else:
                weight_grad += grad.t() @ hidden
        if hidden_grad is not None and weight_grad is not None:
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight_VH.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_grad * scale.to(hidden_grad.dtype), weight_grad * scale.to(weight_grad.dtype), None, None


def linear_cross_entropy_sum(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, *, chunk: int) -> Tensor:
    """Sum over tokens of the cross-entropy (nats) of logits ``hidden_NH @ weight_VH.T`` against ``targets_N``.

    Args:
        hidden_NH: [N, H], fp32 or bf16; logits are turned to fp32 before the softmax.
        weight_VH: [V, H], same dtype.
        targets_N: [N] int64; rows with :data:`IGNORED` do not count.
        chunk: rows whose logits exist at once.

    Returns:
        Scalar, fp32 (fp64 for fp64 weights). Differentiable once with respect to hidden states and weight.
    """
    # An explicit custom function may not see tensors that need no gradient (evaluation): it then stores nothing.
    return _LinearCrossEntropy.apply(hidden_NH, weight_VH, targets_N, chunk)
