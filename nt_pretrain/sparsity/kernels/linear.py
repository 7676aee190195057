"""y = x · Wᵀ where W's parameters are its active blocks, or its active single weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity.kernels import build, torch_path
from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout

NATIVE_BLOCKS = (16, 32, 64, 128)
NATIVE_TYPES = (torch.float32, torch.bfloat16)
TYPES = (torch.float32, torch.bfloat16, torch.float64)


def block_linear(x: Tensor, values: Tensor, layout: BlockLayout, compiled: bool | None = None) -> Tensor:
    """x [..., inputs] to y [..., outputs], in the type of x (of autocast, where it is on).

    Args:
        values: [block rows, fan_in, block, block], of the type of x, or float32 under a bfloat16 x: then the products
            read a rounded copy and the gradient of ``values`` is float32.
        compiled: True demands the compiled kernels, False plain torch; None takes the compiled ones where they
            are to be had (float32 and bfloat16, blocks of 16, 32, 64 and 128).

    Raises:
        ValueError: shapes, types or devices that do not fit, or compiled kernels demanded that there are none of.
    """
    x = _as_autocast(x)
    _check(x, values, layout)
    native = _native(x, compiled, f"blocks of {layout.block}" if layout.block not in NATIVE_BLOCKS else None)
    y: Tensor = _BlockProduct.apply(x.reshape(-1, layout.inputs), values, layout.columns, layout, native)
    return y.reshape(*x.shape[:-1], layout.outputs)


def csr_linear(x: Tensor, values: Tensor, layout: CsrLayout | CsrSlots, compiled: bool | None = None) -> Tensor:
    """x [..., inputs] to y [..., outputs] for ``values`` [active weights]; otherwise as ``block_linear``.

    Raises:
        ValueError: as ``block_linear``.
    """
    x = _as_autocast(x)
    _check(x, values, layout)
    native = _native(x, compiled, None)
    places = layout.ids if isinstance(layout, CsrSlots) else layout.columns
    y: Tensor = _CsrProduct.apply(x.reshape(-1, layout.inputs), values, places, layout, native)
    return y.reshape(*x.shape[:-1], layout.outputs)


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, columns: Tensor, layout: BlockLayout, native: bool) -> Tensor:
        # columns is saved so that autograd refuses a backward pass through blocks that have moved meanwhile.
        ctx.save_for_backward(x, values, columns)
        ctx.layout, ctx.native = layout, native
        weights = values.detach().to(x.dtype)
        with torch.autocast("cpu", enabled=False):
            if not native:
                return torch_path.block_forward(x, weights, layout)
            lists, blocks = layout.indices().forward, weights.reshape(-1, layout.block, layout.block).contiguous()
            return torch.ops.nt_sparse.block_product(
                _rows(x), blocks, lists.pointers, lists.index, lists.slots, layout.outputs, True
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, values, _ = ctx.saved_tensors
        layout, dx, dw = ctx.layout, None, None
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                dx = _block_input_gradient(dy, values.to(dy.dtype), layout, ctx.native)
            if ctx.needs_input_grad[1]:
                dw = block_weight_gradient(dy, x, layout, ctx.native).to(values.dtype)
        return dx, dw, None, None, None


def _block_input_gradient(dy: Tensor, weights: Tensor, layout: BlockLayout, native: bool) -> Tensor:
    if not native:
        return torch_path.block_input_gradient(dy, weights, layout)
    lists, blocks = layout.indices().backward, weights.reshape(-1, layout.block, layout.block).contiguous()
    found: Tensor = torch.ops.nt_sparse.block_product(
        _rows(dy), blocks, lists.pointers, lists.index, lists.slots, layout.inputs, False
    )
    return found


def block_weight_gradient(dy: Tensor, x: Tensor, layout: BlockLayout, native: bool) -> Tensor:
    """The gradient of the active blocks for dy [tokens, outputs] and x [tokens, inputs], at least float32."""
    if not native:
        return torch_path.block_weight_gradient(dy, x, layout)
    indices = layout.indices()
    found: Tensor = torch.ops.nt_sparse.block_gradient(
        _rows(dy), _rows(x), indices.rows, indices.forward.index, layout.block
    )
    return found.reshape(layout.shape)


class _CsrProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, places: Tensor, layout: CsrLayout | CsrSlots, native: bool
    ) -> Tensor:
        ctx.save_for_backward(x, values, places)
        ctx.layout, ctx.native = layout, native
        weights = values.detach().to(x.dtype)
        with torch.autocast("cpu", enabled=False):
            if not native:
                return torch_path.csr_forward(x, weights, layout)
            lists = layout.indices().forward
            return torch.ops.nt_sparse.csr_product(
                _rows(x), weights.contiguous(), lists.pointers, lists.index, lists.slots, layout.outputs
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, values, _ = ctx.saved_tensors
        layout, indices, dx, dw = ctx.layout, ctx.layout.indices(), None, None
        weights, ops = values.to(dy.dtype), torch.ops.nt_sparse
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0] and ctx.native:
                lists = indices.backward
                dx = ops.csr_product(
                    _rows(dy), weights.contiguous(), lists.pointers, lists.index, lists.slots, layout.inputs
                )
            elif ctx.needs_input_grad[0]:
                dx = torch_path.csr_input_gradient(dy, weights, layout)
            if ctx.needs_input_grad[1] and ctx.native:
                lists = indices.forward
                dw = ops.csr_gradient(_rows(dy), _rows(x), lists.pointers, lists.index, lists.slots)
            elif ctx.needs_input_grad[1]:
                dw = torch_path.csr_weight_gradient(dy, x, layout)
        return dx, None if dw is None else dw.to(values.dtype), None, None, None


def _rows(x: Tensor) -> Tensor:
    """Any stride between rows is fine for the kernels, none within a row."""
    return x if x.stride(1) == 1 else x.contiguous()


def _as_autocast(x: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.dtype in NATIVE_TYPES and torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def _check(x: Tensor, values: Tensor, layout: BlockLayout | CsrLayout | CsrSlots) -> None:
    if x.device.type != "cpu" or values.device.type != "cpu":
        raise ValueError(
            f"x is on {x.device} and the values are on {values.device}: these products run on the CPU; move both there"
        )
    fitting = values.dtype == x.dtype or (x.dtype, values.dtype) == (torch.bfloat16, torch.float32)
    if x.dtype not in TYPES or not fitting:
        raise ValueError(
            f"x is {_name(x)} and the values are {_name(values)}: both must be float32, bfloat16 or float64, "
            "or bfloat16 for x and float32 for the values"
        )
    if x.dim() < 1 or x.shape[-1] != layout.inputs:
        raise ValueError(
            f"x is {list(x.shape)}, but the layer has {layout.inputs} inputs: they must be x's last dimension"
        )
    if values.shape != layout.shape:
        raise ValueError(
            f"the values are {list(values.shape)}, but the layout has {list(layout.shape)}: "
            "make the values with layout.from_dense, or as zeros of layout.shape"
        )


def _native(x: Tensor, wanted: bool | None, obstacle: str | None) -> bool:
    if x.dtype not in NATIVE_TYPES:
        obstacle = _name(x)
    if wanted is None:
        return obstacle is None and build.compiled()
    if wanted and obstacle:
        raise ValueError(f"there are no compiled kernels for {obstacle}; leave `compiled` out to run in plain torch")
    if wanted and not build.compiled():
        raise ValueError(
            "the compiled kernels could not be built (told above); leave `compiled` out to run in plain torch"
        )
    return wanted


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
