"""Norms of all blocks of a dense weight gradient, without holding that gradient: the scores that growth needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout


def block_norms(
    dy: Tensor,
    x: Tensor,
    layout: BlockLayout,
    reduce: Callable[[Tensor], None] | None = None,
    piece_bytes: int = 16 * 2**20,
) -> Tensor:
    """float32 [block rows, block columns]: the 2-norm of every block of dyᵀ · x, active or not.

    The products run in bfloat16 (summed in float32) over some block rows at a time. Beside the result this takes
    ``piece_bytes`` (one block row, if that is more), as much again while norms are taken, and bfloat16 copies of x and
    of the piece's columns of dy.

    Args:
        dy: [tokens, outputs].
        x: [tokens, inputs].
        reduce: changes a piece of the gradient (bfloat16 [outputs of the piece, inputs]) in place before its norms are
            taken, such as to the mean over ranks; called equally often on all of them.

    Raises:
        ValueError: shapes that do not fit the layout.
    """
    if dy.dim() != 2 or x.dim() != 2 or dy.shape[1] != layout.outputs or x.shape != (len(dy), layout.inputs):
        raise ValueError(
            f"dy is {list(dy.shape)} and x is {list(x.shape)}, but the layer needs [tokens, {layout.outputs}] and "
            f"[tokens, {layout.inputs}]: flatten the leading dimensions of both"
        )
    block, columns = layout.block, layout.block_columns
    right = x.detach().bfloat16()
    found = torch.empty(layout.block_rows, columns, dtype=torch.float32, device=dy.device)
    step = max(1, piece_bytes // (block * layout.inputs * 2))
    for row in range(0, layout.block_rows, step):
        last = min(row + step, layout.block_rows)
        left = dy.detach()[:, row * block : last * block].bfloat16()
        with torch.autocast(dy.device.type, enabled=False):
            piece = left.t() @ right
        if reduce is not None:
            reduce(piece)
        below, beside = (last - row) * block - len(piece), columns * block - layout.inputs
        padded = torch.nn.functional.pad(piece, (0, beside, 0, below)).reshape(last - row, block, columns, block)
        found[row:last] = torch.linalg.vector_norm(padded, dim=(1, 3), dtype=torch.float32)
    return found
