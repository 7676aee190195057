"""The products of block-sparse weights by stk, the library that megablocks multiplies with: heads as its experts.

All heads' weights are one stk matrix, a block diagonal with holes, of blocks of 128 only. Its products take two
dimensions, so activations of separate inputs are laid side by side, [tokens, heads * width], which copies them; tokens
are filled up to a multiple of 128. Sums are float32 inside a product; the gradient of the weights leaves it in the type
of the activations. On a GPU it multiplies float32 in TF32, whatever torch is told.

stk (of the extra ``gpu``) is imported by the first product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.kernels.triton_path import interpreting

BLOCK = 128
INSTALL = "pip install 'nt-pretrain[gpu]'"


def ensure(x: Tensor, block: int) -> None:
    """Raise unless stk can multiply ``x`` with blocks of ``block``.

    Raises:
        ImportError: stk or triton is not installed, or cannot be imported.
        ValueError: another block, type or device than stk has.
    """
    try:
        import stk.ops  # noqa: F401
    except ImportError as error:
        raise ImportError(f"stk cannot be imported ({error}); install the extra: {INSTALL}") from error
    if block != BLOCK:
        raise ValueError(f"blocks of {block}: stk has blocks of {BLOCK} only; take `by=None` or sparsity.unit={BLOCK}")
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"x is {str(x.dtype).removeprefix('torch.')}: stk's products take float32 and bfloat16")
    if x.device.type != "cuda" and not interpreting():
        raise ValueError(f"x is on {x.device}: stk's products need a CUDA device")


def forward(x: Tensor, values: Tensor, joined: BlockLayout, heads: int, inputs: int) -> Tensor:
    """Y = X Wᵀ of all heads: x [inputs, tokens, K] to [heads, tokens, N]; arguments as of ``triton_path``."""
    import stk.ops

    wide = stk.ops.dds(_side_by_side(x), _matrix(values, joined).t())
    return _apart(wide, heads, x.shape[1])


def input_gradient(dy: Tensor, values: Tensor, joined: BlockLayout, heads: int, inputs: int) -> Tensor:
    """dX = dY W of all heads: dy [heads, tokens, N] to [inputs, tokens, K], summed over heads where inputs is 1."""
    import stk.ops

    wide = stk.ops.dds(_side_by_side(dy), _matrix(values, joined))
    return _apart(wide, inputs, dy.shape[1])


def weight_gradient(dy: Tensor, x: Tensor, joined: BlockLayout, heads: int, inputs: int) -> Tensor:
    """dW of the active blocks, [heads * block rows, fan_in, block, block], in the type of x."""
    import stk.ops

    # stk reads of the matrix that tells the blocks their places only, and of the type of its values nothing.
    topology = _matrix(x.new_empty(joined.shape), joined)
    found: Tensor = stk.ops.sdd(_side_by_side(dy).t(), _side_by_side(x), topology).data
    return found.view(joined.shape)


def _matrix(values: Tensor, joined: BlockLayout) -> Any:
    from stk import Matrix

    indices = joined.indices()
    # int32 throughout: with int16 stk's kernels overflow from 256 block rows or columns on.
    back = indices.backward
    return Matrix(
        (joined.outputs, joined.inputs), values.reshape(-1, BLOCK, BLOCK), indices.rows, indices.forward.index,
        indices.forward.pointers, back.index, back.pointers, back.slots,
    )  # fmt: skip


def _side_by_side(x: Tensor) -> Tensor:
    """[n, tokens, width] as [tokens filled up, n * width], contiguous."""
    count, tokens, width = x.shape
    filled = max(1, -(-tokens // BLOCK)) * BLOCK
    if filled == tokens:
        return x.transpose(0, 1).reshape(tokens, count * width).contiguous()
    made = x.new_zeros(filled, count, width)
    made[:tokens] = x.transpose(0, 1)
    return made.view(filled, count * width)


def _apart(wide: Tensor, count: int, tokens: int) -> Tensor:
    return wide[:tokens].view(tokens, count, wide.shape[1] // count).transpose(0, 1)
