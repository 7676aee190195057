"""The products of active blocks by the Triton kernels: of one layer, or of that layer of all heads in one launch.

They are operators of torch (``torch.ops.nt_triton``), so that a rehearsal on tensors without values and torch.compile
know what comes out without running them. Triton is imported by the first product that runs.

Weights are those of a joined layout: the block rows of all heads one below the other, columns counting through the
inputs of all heads. X is [inputs, tokens, K] with one input for all heads or one for each, Y is [heads, tokens, N]; K
and N are multiples of the block.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout

UNITS = (16, 32, 64, 128)
TYPES = (torch.float32, torch.bfloat16)


@functools.cache
def available() -> bool:
    """Whether the kernels can be imported. The reason is told once if not."""
    try:
        from nt_pretrain.sparsity import kernels_triton  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # a triton of another torch fails in all these ways
        print(
            f"sparse products on this GPU run in plain torch, with the same numbers but slower: {error}",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True


def interpreting() -> bool:
    """Whether triton interprets its kernels here, which then take tensors on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1" and importlib.util.find_spec("triton") is not None


def forward(x: Tensor, values: Tensor, joined: BlockLayout, heads: int, inputs: int) -> Tensor:
    """Y = X Wᵀ of all heads: x [inputs, tokens, K] to [heads, tokens, N]."""
    found: Tensor = torch.ops.nt_triton.forward(x, values, *_lists(joined), joined.block, heads, inputs)
    return found


def input_gradient(dy: Tensor, values: Tensor, joined: BlockLayout, heads: int, inputs: int) -> Tensor:
    """dX = dY W of all heads: dy [heads, tokens, N] to [inputs, tokens, K], summed over heads where inputs is 1."""
    found: Tensor = torch.ops.nt_triton.input_gradient(dy, values, *_lists(joined), joined.block, heads, inputs)
    return found


def weight_gradient(dy: Tensor, x: Tensor, joined: BlockLayout, heads: int, inputs: int) -> Tensor:
    """dW of the active blocks, float32 [heads * block rows, fan_in, block, block]."""
    found: Tensor = torch.ops.nt_triton.weight_gradient(dy, x, *_lists(joined), joined.block, heads, inputs)
    return found


def block_forward(x: Tensor, values: Tensor, layout: BlockLayout) -> Tensor:
    """x [tokens, inputs] to y [tokens, outputs]."""
    y = forward(padded(x, layout.block).unsqueeze(0), values, layout, 1, 1)
    return y.squeeze(0).narrow(1, 0, layout.outputs)


def block_input_gradient(dy: Tensor, values: Tensor, layout: BlockLayout) -> Tensor:
    """dy [tokens, outputs] to dx [tokens, inputs]."""
    dx = input_gradient(padded(dy, layout.block).unsqueeze(0), values, layout, 1, 1)
    return dx.squeeze(0).narrow(1, 0, layout.inputs)


def block_weight_gradient(dy: Tensor, x: Tensor, layout: BlockLayout) -> Tensor:
    """The gradient of ``values``, float32."""
    outer, inner = padded(dy, layout.block).unsqueeze(0), padded(x, layout.block).unsqueeze(0)
    return weight_gradient(outer, inner, layout, 1, 1)


def padded(x: Tensor, block: int) -> Tensor:
    """``x`` with its last dimension filled up with zeros to a multiple of ``block``."""
    missing = -x.shape[-1] % block
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _lists(joined: BlockLayout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    indices = joined.indices()
    return joined.columns, indices.rows, indices.backward.pointers, indices.backward.slots


@torch.library.custom_op("nt_triton::forward", mutates_args=())
def _forward(
    x: Tensor, values: Tensor, columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor,
    block: int, heads: int, inputs: int,
) -> Tensor:  # fmt: skip
    from nt_pretrain.sparsity import kernels_triton as kernels

    plan = kernels.plan_from(columns, rows, starts, positions, unit=block, heads=heads, inputs=inputs)
    return kernels.bs_fwd(x, values, plan)


@_forward.register_fake
def _(
    x: Tensor, values: Tensor, columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor,
    block: int, heads: int, inputs: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(heads, x.shape[1], columns.shape[0] // heads * block)


@torch.library.custom_op("nt_triton::input_gradient", mutates_args=())
def _input_gradient(
    dy: Tensor, values: Tensor, columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor,
    block: int, heads: int, inputs: int,
) -> Tensor:  # fmt: skip
    from nt_pretrain.sparsity import kernels_triton as kernels

    plan = kernels.plan_from(columns, rows, starts, positions, unit=block, heads=heads, inputs=inputs)
    return kernels.bs_dx(dy, values, plan)


@_input_gradient.register_fake
def _(
    dy: Tensor, values: Tensor, columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor,
    block: int, heads: int, inputs: int,
) -> Tensor:  # fmt: skip
    return dy.new_empty(inputs, dy.shape[1], (starts.shape[0] - 1) // inputs * block)


@torch.library.custom_op("nt_triton::weight_gradient", mutates_args=())
def _weight_gradient(
    dy: Tensor, x: Tensor, columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor,
    block: int, heads: int, inputs: int,
) -> Tensor:  # fmt: skip
    from nt_pretrain.sparsity import kernels_triton as kernels

    plan = kernels.plan_from(columns, rows, starts, positions, unit=block, heads=heads, inputs=inputs)
    return kernels.bs_dw(dy, x, plan)


@_weight_gradient.register_fake
def _(
    dy: Tensor, x: Tensor, columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor,
    block: int, heads: int, inputs: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(*columns.shape, block, block, dtype=torch.float32)
