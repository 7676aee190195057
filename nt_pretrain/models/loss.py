"""Cross-entropy of a linear output layer without the full logits.

The fp32 logits of a head, [tokens, vocabulary], are the largest tensor of a small model. They are made a chunk of
tokens at a time; the gradient of the chunk's logits is formed in place at once and folded into the gradients of the
hidden states and the weight, so that no logits survive the forward pass and nothing is computed twice.

torch 2.13 has ``F.linear_cross_entropy`` with chunking. On CPU it took 2 to 5 times as long as this function at a
vocabulary of 32,000, and in bf16 it accumulates the sum of the losses in bf16 (8.88 instead of 10.40 at 1,024 tokens),
so it is not used; ``docs/PERFORMANCE.md`` has the figures.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

IGNORED = -100
"""Target that counts neither in the loss nor in the number of targets."""


def statistics_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of logits and sums: fp32, for fp64 weights fp64."""
    return torch.promote_types(weight.dtype, torch.float32)


class OutputMatrix(Protocol):
    """The products with an output layer's weight that its loss needs; dense or sparse. Used for one loss.

    Attributes:
        rows: V.
    """

    rows: int

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, V]."""

    def hidden_gradient_(self, grad_NV: Tensor, out_NH: Tensor) -> None:
        """Write the gradient of the hidden states to ``out_NH``."""

    def add_weight_gradient(self, grad_NV: Tensor, hidden_NH: Tensor) -> None:
        """Add that of the weight of some tokens, in fp32 at least: chunks' contributions differ in size."""

    def weight_gradient(self) -> Tensor:
        """The sum, in the dtype of the weight; asked for once."""

    def backward(self, scale: Tensor) -> None:
        """Called in the backward pass with the gradient of the loss."""


class DenseMatrix:
    """:class:`OutputMatrix` of a weight [V, H]."""

    def __init__(self, weight_VH: Tensor) -> None:
        self.weight, self.rows = weight_VH, len(weight_VH)
        self.total: Tensor | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return hidden_NH @ self.weight.t()

    def hidden_gradient_(self, grad_NV: Tensor, out_NH: Tensor) -> None:
        torch.mm(grad_NV, self.weight, out=out_NH)

    def add_weight_gradient(self, grad_NV: Tensor, hidden_NH: Tensor) -> None:
        if self.total is None:
            self.total = torch.zeros_like(self.weight, dtype=statistics_dtype(self.weight))
        if grad_NV.dtype == self.total.dtype:
            self.total.addmm_(grad_NV.t(), hidden_NH)
        else:
            self.total += grad_NV.t() @ hidden_NH

    def weight_gradient(self) -> Tensor:
        total, self.total = self.total, None
        return torch.zeros_like(self.weight) if total is None else total.to(self.weight.dtype)

    def backward(self, scale: Tensor) -> None:
        """Nothing beside the gradients."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight: Tensor, matrix: OutputMatrix, targets_N: Tensor, chunk: int
    ) -> Tensor:
        wide = statistics_dtype(weight)
        total = torch.zeros((), dtype=wide, device=hidden_NH.device)
        wants_gradient = hidden_NH.requires_grad or weight.requires_grad
        hidden_grad = torch.empty_like(hidden_NH) if wants_gradient else None
        for start in range(0, hidden_NH.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden, targets = hidden_NH[part], targets_N[part]
            ignored = (targets == IGNORED)[:, None]
            column = targets.clamp_min(0)[:, None]
            logp = torch.log_softmax(matrix.logits(hidden).to(wide), dim=-1)
            total -= logp.gather(1, column).masked_fill_(ignored, 0.0).sum()
            if hidden_grad is None:
                continue
            # d loss / d logits = softmax - onehot, zero in ignored rows.
            grad = logp.exp_()
            grad.scatter_add_(1, column, torch.full_like(column, -1, dtype=grad.dtype))
            grad.masked_fill_(ignored, 0.0)
            grad = grad.to(weight.dtype)
            matrix.hidden_gradient_(grad, hidden_grad[part])
            matrix.add_weight_gradient(grad, hidden)
        if hidden_grad is not None:
            ctx.save_for_backward(hidden_grad, matrix.weight_gradient())
            ctx.matrix = matrix
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grad_outputs[0]
        ctx.matrix.backward(scale)
        return hidden_grad * scale.to(hidden_grad.dtype), weight_grad * scale.to(weight_grad.dtype), None, None, None


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
    return matrix_cross_entropy_sum(hidden_NH, weight_VH, DenseMatrix(weight_VH.detach()), targets_N, chunk=chunk)


def matrix_cross_entropy_sum(
    hidden_NH: Tensor, weight: Tensor, matrix: OutputMatrix, targets_N: Tensor, *, chunk: int
) -> Tensor:
    """The same of any output layer: ``matrix`` multiplies with ``weight``, which is what gets the gradient."""
    # An explicit custom function may not see tensors that need no gradient (evaluation): it then stores nothing.
    loss: Tensor = _LinearCrossEntropy.apply(hidden_NH, weight, matrix, targets_N, chunk)
    return loss
