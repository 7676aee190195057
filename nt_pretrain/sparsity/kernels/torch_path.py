"""The products of active blocks and of single weights in plain torch: without a compiler, and in double precision.

Blocks: per output block one product of the inputs it reads, side by side, with its blocks. Many small blocks, and
single weights, go through the dense matrix, which takes less time than so many small products. That saves no time, only
what parameters, gradients and moments take.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout, Lists


def through_dense(layout: BlockLayout) -> bool:
    """Whether the dense product is the faster one: measured about where the density reaches block / 100."""
    return layout.fan_in / layout.block_columns > layout.block / 100


def block_forward(x: Tensor, values: Tensor, layout: BlockLayout) -> Tensor:
    """x [tokens, inputs] to y [tokens, outputs]."""
    if through_dense(layout):
        return x @ layout.to_dense(values).t()
    return _block_product(x, values, layout.indices().forward, layout.outputs, turned=True)


def block_input_gradient(dy: Tensor, values: Tensor, layout: BlockLayout) -> Tensor:
    """dy [tokens, outputs] to dx [tokens, inputs]."""
    if through_dense(layout):
        return dy @ layout.to_dense(values)
    return _block_product(dy, values, layout.indices().backward, layout.inputs, turned=False)


def block_weight_gradient(dy: Tensor, x: Tensor, layout: BlockLayout) -> Tensor:
    """The gradient of ``values``, in the type of x (at least float32)."""
    block = layout.block
    if through_dense(layout):
        return layout.from_dense(_wide_product(dy.t(), x))
    inputs, slopes = _blocks_of(x, block), _blocks_of(dy, block)
    found = x.new_empty(layout.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    _, index = layout.indices().forward.on_host
    for row in range(layout.block_rows):
        columns = index[row * layout.fan_in : (row + 1) * layout.fan_in]
        side_by_side = torch.cat([inputs[column] for column in columns], 1)
        product = _wide_product(slopes[row].t(), side_by_side)
        found[row] = product.reshape(block, layout.fan_in, block).transpose(0, 1)
    return found


def _block_product(x: Tensor, values: Tensor, lists: Lists, outputs: int, turned: bool) -> Tensor:
    blocks = values.reshape(-1, *values.shape[-2:])
    block = blocks.shape[-1]
    inputs = _blocks_of(x, block)
    count = len(lists.pointers) - 1
    y = x.new_zeros(len(x), count * block)
    pointers, index = lists.on_host
    for row in range(count):
        first, last = pointers[row], pointers[row + 1]
        if first < last:
            chosen = blocks[lists.slots[first:last].long()]
            side_by_side = torch.cat([inputs[column] for column in index[first:last]], 1)
            right = (chosen.transpose(1, 2) if turned else chosen).reshape(-1, block)
            y[:, row * block : (row + 1) * block] = side_by_side @ right
    return y[:, :outputs].contiguous()


def _blocks_of(x: Tensor, block: int) -> tuple[Tensor, ...]:
    """x [tokens, width] as its columns [tokens, block], the last ones padded with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % block)).split(block, 1)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """bfloat16 in, float32 out: a weight gradient is not rounded before it reaches float32 parameters."""
    if left.dtype == torch.bfloat16:
        return left.float() @ right.float()
    return left @ right


def csr_forward(x: Tensor, values: Tensor, layout: CsrLayout | CsrSlots) -> Tensor:
    """x [tokens, inputs] to y [tokens, outputs]."""
    return x @ layout.to_dense(values).t()


def csr_input_gradient(dy: Tensor, values: Tensor, layout: CsrLayout | CsrSlots) -> Tensor:
    """dy [tokens, outputs] to dx [tokens, inputs]."""
    return dy @ layout.to_dense(values)


def csr_weight_gradient(dy: Tensor, x: Tensor, layout: CsrLayout | CsrSlots) -> Tensor:
    """The gradient of ``values``, in the type of x (at least float32)."""
    return layout.from_dense(_wide_product(dy.t(), x))
