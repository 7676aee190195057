"""The products of active blocks and of single weights in plain torch: without a compiler, and in double precision.

Blocks: per output block one product of the inputs it reads, side by side, with its blocks. Single weights: through the
dense matrix, so this path saves no time, only what the parameters take.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout, Lists


def block_forward(x: Tensor, values: Tensor, layout: BlockLayout) -> Tensor:
    """x [tokens, inputs] to y [tokens, outputs]."""
    return _block_product(x, values, layout.indices().forward, layout.outputs, turned=True)


def block_input_gradient(dy: Tensor, values: Tensor, layout: BlockLayout) -> Tensor:
    """dy [tokens, outputs] to dx [tokens, inputs]."""
    return _block_product(dy, values, layout.indices().backward, layout.inputs, turned=False)


def block_weight_gradient(dy: Tensor, x: Tensor, layout: BlockLayout) -> Tensor:
    """The gradient of ``values``, in the type of x (at least float32)."""
    block = layout.block
    inputs, slopes = _blocks_of(x, block), _blocks_of(dy, block)
    found = x.new_empty(layout.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    for row, columns in enumerate(layout.columns.long()):
        side_by_side = inputs[:, columns].flatten(1)
        product = _wide_product(slopes[:, row].t(), side_by_side)
        found[row] = product.reshape(block, layout.fan_in, block).transpose(0, 1)
    return found


def _block_product(x: Tensor, values: Tensor, lists: Lists, outputs: int, turned: bool) -> Tensor:
    blocks = values.reshape(-1, *values.shape[-2:])
    block = blocks.shape[-1]
    inputs = _blocks_of(x, block)
    count = len(lists.pointers) - 1
    y = x.new_zeros(len(x), count, block)
    bounds = lists.pointers.tolist()
    for row in range(count):
        part = slice(bounds[row], bounds[row + 1])
        index, slots = lists.index[part].long(), lists.slots[part].long()
        if len(index):
            chosen = blocks[slots].transpose(1, 2) if turned else blocks[slots]
            y[:, row] = inputs[:, index].flatten(1) @ chosen.reshape(-1, block)
    return y.flatten(1)[:, :outputs].contiguous()


def _blocks_of(x: Tensor, block: int) -> Tensor:
    """x [tokens, width] as [tokens, blocks, block], padded with zeros."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % block))
    return padded.reshape(len(x), padded.shape[1] // block, block)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """bfloat16 in, float32 out: a weight gradient is not rounded before it reaches float32 parameters."""
    if left.dtype == torch.bfloat16:
        return left.float() @ right.float()
    return left @ right


def csr_forward(x: Tensor, values: Tensor, layout: CsrLayout) -> Tensor:
    """x [tokens, inputs] to y [tokens, outputs]."""
    return x @ layout.to_dense(values).t()


def csr_input_gradient(dy: Tensor, values: Tensor, layout: CsrLayout) -> Tensor:
    """dy [tokens, outputs] to dx [tokens, inputs]."""
    return dy @ layout.to_dense(values)


def csr_weight_gradient(dy: Tensor, x: Tensor, layout: CsrLayout) -> Tensor:
    """The gradient of ``values``, in the type of x (at least float32)."""
    return layout.from_dense(_wide_product(dy.t(), x))
