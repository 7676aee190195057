"""Layers of which only the active weights exist, each by itself: the matrices of the block backend with unit 1.

A layer's parameter ``weight`` holds values [active, 1], a slot each (two dimensions, so that it is decayed as matrices
are); which weights those are says its layout, which all ranks that compute with the layer have whole. Parameters keep
the names they have in the masked backend, and modules are called as those they replace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_topology import CsrLayer
from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.sparsity.kernels.linear import csr_linear, csr_products
from nt_pretrain.sparsity.layers import Scoring


class CsrLinear(nn.Module):
    """y = x Wᵀ, [..., inputs] to [..., outputs].

    Attributes:
        layout: which weight each slot holds; given by :meth:`place` before the first use.
        topology: the same with what updates need, where the layer is trained or loaded; it shares the numbers.
        scoring: what growth asks of the next backward passes; None while nothing is to grow.
    """

    def __init__(self, budget: LayerBudget) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(budget.active, 1))
        self.outputs, self.inputs = budget.shape
        self.layout: CsrSlots | None = None
        self.topology: CsrLayer | None = None
        self.scoring: Scoring | None = None

    def place(self, ids: Tensor) -> None:
        """Let the slots hold the weights ``ids`` [active] (int64); the tensor is kept, and may be changed in place."""
        self.layout = CsrSlots(self.outputs, self.inputs, ids)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        assert self.layout is not None, "no weights were placed"
        scoring = None if self.scoring is None else self.scoring.product
        return csr_linear(x, self.weight.view(-1), self.layout, scoring=scoring)


class CsrMatrix:
    """An output layer of single weights in the chunked loss (:class:`nt_pretrain.models.loss.OutputMatrix`).

    Args:
        weight: [active, 1], in the dtype of the hidden states.
    """

    def __init__(self, layer: CsrLinear, weight: Tensor) -> None:
        assert layer.layout is not None, "no weights were placed"
        self.weight, self.scoring, self.rows = weight, layer.scoring, layer.outputs
        self.layout = layer.layout
        self.total: Tensor | None = None
        self.dense: Tensor | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return csr_products(hidden_NH, self.layout).forward(hidden_NH, self.weight.view(-1))

    def hidden_gradient_(self, grad_NV: Tensor, out_NH: Tensor) -> None:
        out_NH.copy_(csr_products(grad_NV, self.layout).input_gradient(grad_NV, self.weight.view(-1)))

    def add_weight_gradient(self, grad_NV: Tensor, hidden_NH: Tensor) -> None:
        part = csr_products(hidden_NH, self.layout).weight_gradient(grad_NV, hidden_NH)
        self.total = part if self.total is None else self.total.add_(part)
        if self.scoring is not None:
            # Chunks of one layer's dense gradient, the most of an update step that exists at once.
            dense = (grad_NV.t() @ hidden_NH).to(part.dtype)
            self.dense = dense if self.dense is None else self.dense.add_(dense)

    def weight_gradient(self) -> Tensor:
        total, self.total = self.total, None
        return torch.zeros_like(self.weight) if total is None else total.to(self.weight.dtype).view_as(self.weight)

    def backward(self, scale: Tensor) -> None:
        if self.scoring is not None:
            dense = self.weight.new_zeros(self.layout.outputs, self.layout.inputs) if self.dense is None else self.dense
            self.scoring.dense(dense.mul_(scale.to(dense.dtype)))
            self.dense = None


class CsrEmbedding(nn.Module):
    """The rows of W that ``tokens`` [...] number, [..., hidden]. Attributes as those of :class:`CsrLinear`."""

    def __init__(self, budget: LayerBudget) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(budget.active, 1))
        self.outputs, self.inputs = budget.shape
        self.layout: CsrSlots | None = None
        self.topology: CsrLayer | None = None
        self.scoring: Scoring | None = None

    def place(self, ids: Tensor) -> None:
        """As :meth:`CsrLinear.place`."""
        self.layout = CsrSlots(self.outputs, self.inputs, ids)

    @torch.compiler.disable
    def forward(self, tokens: Tensor) -> Tensor:
        assert self.layout is not None, "no weights were placed"
        rows: Tensor = _LookUp.apply(self.weight.view(-1), tokens, self.layout.ids, self.layout, self.scoring)
        return rows


class _LookUp(torch.autograd.Function):
    """Rows of the matrix of ``values`` [active], zero where nothing is active."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, tokens: Tensor, ids: Tensor, layout: CsrSlots, scoring: Scoring | None
    ) -> Tensor:
        # ids is saved so that autograd refuses a backward pass through weights that have moved meanwhile.
        ctx.save_for_backward(tokens, ids)
        ctx.layout, ctx.scoring, ctx.dtype = layout, scoring, values.dtype
        slots, at = _entries(tokens, layout)
        rows = values.new_zeros(tokens.numel() * layout.inputs)
        return rows.index_copy_(0, at, values.detach()[slots]).view(*tokens.shape, layout.inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
        tokens, _ = ctx.saved_tensors
        layout: CsrSlots = ctx.layout
        # Sums of many small numbers: at least in fp32.
        wide = torch.promote_types(dy.dtype, torch.float32)
        slots, at = _entries(tokens, layout)
        gradient = torch.zeros(layout.shape, dtype=wide, device=dy.device)
        gradient.index_add_(0, slots, dy.reshape(-1)[at].to(wide))
        if ctx.scoring is not None:
            dense = dy.new_zeros(layout.outputs, layout.inputs, dtype=wide)
            ctx.scoring.dense(dense.index_add_(0, tokens.reshape(-1), dy.reshape(-1, layout.inputs).to(wide)))
        return gradient.to(ctx.dtype), None, None, None, None


def _entries(tokens: Tensor, layout: CsrSlots) -> tuple[Tensor, Tensor]:
    """For all active weights of the rows that ``tokens`` number: their slots, and where they lie in the flat result."""
    lists = layout.indices().forward
    pointers, flat = lists.pointers.to(torch.int64), tokens.reshape(-1)
    counts = (pointers[1:] - pointers[:-1])[flat]
    first = counts.cumsum(0) - counts
    # An entry's place in the lists: where its row begins, plus how far behind the token's first entry it is.
    entries = torch.arange(int(counts.sum())) + (pointers[flat] - first).repeat_interleave(counts)
    rows = torch.arange(len(flat)).repeat_interleave(counts) * layout.inputs
    return lists.slots[entries].to(torch.int64), rows + lists.index[entries]


def single_budgets(budgets: dict[str, LayerBudget]) -> dict[str, LayerBudget]:
    """Those of ``budgets`` whose layers become layers of single weights.

    Layers whose weights are all active stay dense: none of them could move, and dense products are faster.
    """
    return {name: budget for name, budget in budgets.items() if budget.active < budget.units}


def replace_single(root: nn.Module, budgets: dict[str, LayerBudget], prefix: str = "") -> None:
    """Put layers of single weights in the place of those whose weights, by name behind ``prefix``, have a budget."""
    for path, module in list(root.named_modules()):
        budget = budgets.get(f"{prefix}{path}.weight")
        if budget is None:
            continue
        parent, _, name = path.rpartition(".")
        sparse = CsrEmbedding(budget) if isinstance(module, nn.Embedding) else CsrLinear(budget)
        setattr(root.get_submodule(parent), name, sparse)


def single_layers(root: nn.Module, prefix: str = "") -> dict[str, CsrLinear | CsrEmbedding]:
    """The layers of single weights of ``root`` by the name of their parameter, behind ``prefix``."""
    return {
        f"{prefix}{path}.weight": module
        for path, module in root.named_modules()
        if isinstance(module, CsrLinear | CsrEmbedding)
    }
