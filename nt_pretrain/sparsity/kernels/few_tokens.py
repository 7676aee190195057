"""Products for few tokens, as decoding has them: bound by the memory that weights come from, so these are read once."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout

FEW = 16
"""More tokens than this take the kernels of training, which copy weights first and then reuse them."""


def are_few(x: Tensor) -> bool:
    """Whether the rows of x [tokens, width] are few; the kernels must be there (``build.compiled``)."""
    return len(x) <= FEW


def block_product(x: Tensor, values: Tensor, layout: BlockLayout, *, turned: bool) -> Tensor:
    """x [tokens, inputs] to y [tokens, outputs], or with ``turned`` x [tokens, outputs] to x · W [tokens, inputs].

    ``values`` are of the type of x, as y is. Sums are float32.
    """
    lists, width = layout.indices().forward, layout.outputs
    if turned:
        lists, width = layout.indices().backward, layout.inputs
    blocks = values.reshape(-1, layout.block, layout.block).contiguous()
    y: Tensor = torch.ops.nt_sparse.block_few(
        _rows(x), blocks, lists.pointers, lists.index, lists.slots, width, not turned
    )
    return y


def csr_product(x: Tensor, values: Tensor, layout: CsrLayout | CsrSlots, *, turned: bool) -> Tensor:
    """As :func:`block_product`, of single weights."""
    lists, width = layout.indices().forward, layout.inputs if turned else layout.outputs
    if isinstance(layout, CsrSlots):
        values = values.index_select(0, lists.slots)  # by row, as the kernel reads them
    y: Tensor = torch.ops.nt_sparse.csr_few(
        _rows(x), values.contiguous(), lists.pointers, lists.short_index, width, turned
    )
    return y


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
