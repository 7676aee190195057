"""Layers of which only the active blocks exist: the matrices of the block backend.

A layer's parameter ``weight`` holds values [lines, fan, b, b]; where they belong says its layout, which all ranks that
compute with the layer have whole. A layer balanced by column is kept as the row-balanced layer of its transpose.
Parameters keep the names they have in the masked backend, and modules are called as those they replace.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer
from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.kernels.linear import block_linear, block_products
from nt_pretrain.sparsity.kernels.taps import Window


class Scoring(Protocol):
    """What takes the dense gradients of a layer in the backward pass of an update step, lines first (its transpose
    where the layer is kept as that).
    """

    def product(self, left: Tensor, right: Tensor) -> None:
        """Of leftᵀ · right, [tokens, rows] and [tokens, columns]."""

    def convolution(self, dy: Tensor, x: Tensor, window: Window) -> None:
        """Of a convolution, dy [B, outputs, Y', X'] and x [B, channels, Y, X]."""

    def dense(self, gradient: Tensor) -> None:
        """Of ``gradient`` [rows, columns], which may be changed."""


class SparseLinear(nn.Module):
    """y = x Wᵀ, [..., inputs] to [..., outputs].

    Attributes:
        layout: where the values belong that are multiplied here; given by :meth:`place` before the first use.
        topology: of the lines that this rank holds, where it trains or loads the layer.
        turned: whether ``weight`` and ``layout`` are those of Wᵀ.
        scoring: what growth asks of the next backward passes; None while nothing is to grow.
    """

    def __init__(self, budget: BlockBudget) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(budget.lines, budget.fan, budget.unit, budget.unit))
        self.across, self.unit = budget.across, budget.unit
        self.turned = budget.balance == "col"
        self.layout: BlockLayout | None = None
        self.topology: BlockLayer | None = None
        self.scoring: Scoring | None = None

    def place(self, columns: Tensor) -> None:
        """Let the lines multiplied here have their blocks at ``columns`` [lines, fan] (int32)."""
        self.layout = placed(self.layout, columns, self.across, self.unit)

    @torch.compiler.disable
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """By the lines of ``weight``, all those placed."""
        assert self.layout is not None, "no blocks were placed"
        scoring = None if self.scoring is None else self.scoring.product
        return block_linear(x, weight, self.layout, turned=self.turned, scoring=scoring)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)


class BlockMatrix:
    """An output layer of blocks in the chunked loss (:class:`nt_pretrain.models.loss.OutputMatrix`).

    Args:
        weight: the lines multiplied here, in the dtype of the hidden states.
    """

    def __init__(self, layer: SparseLinear, weight: Tensor) -> None:
        assert layer.layout is not None, "no blocks were placed"
        assert not layer.turned, "an output layer is balanced by row"
        self.weight, self.scoring, self.rows = weight, layer.scoring, layer.layout.outputs
        self.products = block_products(weight, layer.layout)
        self.total: Tensor | None = None
        self.dense: Tensor | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return self.products.forward(hidden_NH, self.weight)

    def hidden_gradient_(self, grad_NV: Tensor, out_NH: Tensor) -> None:
        out_NH.copy_(self.products.input_gradient(grad_NV, self.weight))

    def add_weight_gradient(self, grad_NV: Tensor, hidden_NH: Tensor) -> None:
        part = self.products.weight_gradient(grad_NV, hidden_NH)
        self.total = part if self.total is None else self.total.add_(part)
        if self.scoring is not None:
            # Chunks of one layer's dense gradient, the most of an update step that exists at once.
            dense = (grad_NV.t() @ hidden_NH).to(part.dtype)
            self.dense = dense if self.dense is None else self.dense.add_(dense)

    def weight_gradient(self) -> Tensor:
        total, self.total = self.total, None
        return torch.zeros_like(self.weight) if total is None else total.to(self.weight.dtype)

    def backward(self, scale: Tensor) -> None:
        if self.scoring is not None:
            layout = self.products.layout
            dense = self.weight.new_zeros(layout.outputs, layout.inputs) if self.dense is None else self.dense
            self.scoring.dense(dense.mul_(scale.to(dense.dtype)))
            self.dense = None


class SparseEmbedding(nn.Module):
    """The rows of W that ``tokens`` [...] number, [..., hidden]. Attributes as those of :class:`SparseLinear`."""

    def __init__(self, budget: BlockBudget) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(budget.lines, budget.fan, budget.unit, budget.unit))
        self.across, self.unit = budget.across, budget.unit
        self.layout: BlockLayout | None = None
        self.topology: BlockLayer | None = None
        self.scoring: Scoring | None = None

    def place(self, columns: Tensor) -> None:
        """As :meth:`SparseLinear.place`."""
        self.layout = placed(self.layout, columns, self.across, self.unit)

    @torch.compiler.disable
    def look_up(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """In the lines of ``weight``, all those placed; tokens are counted from the first of them."""
        assert self.layout is not None, "no blocks were placed"
        lines, fan, unit, _ = weight.shape
        # Values of one token side by side; torch's embedding then adds up their gradients.
        values = F.embedding(tokens, weight.transpose(1, 2).reshape(lines * unit, fan * unit))
        columns = self.layout.columns.long().to(tokens.device)[tokens // unit]
        rows: Tensor = _Spread.apply(
            values.unflatten(-1, (fan, unit)), columns, tokens, self.layout.block_columns, self.scoring, lines * unit
        )
        return rows

    def forward(self, tokens: Tensor) -> Tensor:
        return self.look_up(tokens, self.weight)


class _Spread(torch.autograd.Function):
    """Values [..., fan, b] at block ``columns`` [..., fan] of rows [..., hidden] that are zero elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, columns: Tensor, tokens: Tensor, across: int, scoring: Scoring | None, rows: int
    ) -> Tensor:
        ctx.save_for_backward(columns, tokens)
        ctx.scoring, ctx.rows, ctx.across = scoring, rows, across
        at = columns[..., None].expand_as(values)
        out = values.new_zeros(*values.shape[:-2], across, values.shape[-1])
        return out.scatter_(-2, at, values).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        columns, tokens = ctx.saved_tensors
        if ctx.scoring is not None:
            dense = dy.new_zeros(ctx.rows, dy.shape[-1], dtype=torch.promote_types(dy.dtype, torch.float32))
            ctx.scoring.dense(dense.index_add_(0, tokens.reshape(-1), dy.reshape(-1, dy.shape[-1]).to(dense.dtype)))
        blocks = dy.unflatten(-1, (ctx.across, -1))
        at = columns[..., None].expand(*columns.shape, blocks.shape[-1])
        return blocks.gather(-2, at), None, None, None, None, None


def placed(layout: BlockLayout | None, columns: Tensor, across: int, unit: int) -> BlockLayout:
    """``layout`` with ``columns`` [lines, fan] in place of its own, or a new one."""
    if layout is not None and layout.columns.shape == columns.shape:
        layout.columns.copy_(columns)
        return layout
    return BlockLayout(len(columns) * unit, across * unit, unit, columns.clone())


def replace_layers(root: nn.Module, budgets: dict[str, BlockBudget], prefix: str = "") -> None:
    """Put layers of blocks in the place of those whose weights, by name behind ``prefix``, have a budget."""
    for path, module in list(root.named_modules()):
        budget = budgets.get(f"{prefix}{path}.weight")
        if budget is None or isinstance(module, nn.Conv2d):  # those: nt_pretrain.sparsity.conv_layers
            continue
        parent, _, name = path.rpartition(".")
        sparse = SparseEmbedding(budget) if isinstance(module, nn.Embedding) else SparseLinear(budget)
        setattr(root.get_submodule(parent), name, sparse)


def sparse_layers(root: nn.Module, prefix: str = "") -> dict[str, SparseLinear | SparseEmbedding]:
    """The layers of blocks of ``root`` by the name of their parameter, behind ``prefix``."""
    return {
        f"{prefix}{path}.weight": module
        for path, module in root.named_modules()
        if isinstance(module, SparseLinear | SparseEmbedding)
    }
