"""y = x · Wᵀ where W's parameters are its active blocks, or its active single weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity.kernels import build, torch_path
from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout, Lists

NATIVE_BLOCKS = (16, 32, 64, 128)
NATIVE_TYPES = (torch.float32, torch.bfloat16)
TYPES = (torch.float32, torch.bfloat16, torch.float64)

AnyCsr = CsrLayout | CsrSlots

DENSE_FROM, MANY_TOKENS = 0.45, 64
"""Density and tokens from which on products with single weights take longer than through the dense matrix (measured:
as long at .44 in fp32 and .49 in bf16).
"""


def block_linear(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    compiled: bool | None = None,
    *,
    turned: bool = False,
    scoring: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """x [..., inputs] to y [..., outputs], in the type of x (of autocast, where it is on).

    Args:
        values: [block rows, fan_in, block, block], of the type of x, or float32 under a bfloat16 x: then the products
            read a rounded copy and the gradient of ``values`` is float32.
        compiled: True demands the compiled kernels, False plain torch; None takes the compiled ones where they
            are to be had (float32 and bfloat16, blocks of 16, 32, 64 and 128).
        turned: ``layout`` and ``values`` are those of the transpose: x [..., layout.outputs] to y [..., layout.inputs].
        scoring: called in the backward pass with the two matrices (left [tokens, layout.outputs], right [tokens,
            layout.inputs]) of which leftᵀ · right is the dense gradient, as ``layout`` has it.

    Raises:
        ValueError: shapes, types or devices that do not fit, or compiled kernels demanded that there are none of.
    """
    x = _as_autocast(x)
    _check(x, values, layout, turned=turned)
    native = _native(x, compiled, f"blocks of {layout.block}" if layout.block not in NATIVE_BLOCKS else None)
    width = layout.inputs if turned else layout.outputs
    product = BlockProduct(layout, native, turned)
    y: Tensor = _ProductFunction.apply(x.reshape(-1, x.shape[-1]), values, layout.columns, product, scoring)
    return y.reshape(*x.shape[:-1], width)


def csr_linear(
    x: Tensor,
    values: Tensor,
    layout: AnyCsr,
    compiled: bool | None = None,
    *,
    scoring: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """x [..., inputs] to y [..., outputs] for ``values`` [active weights]; otherwise as ``block_linear``.

    Where nearly half of the weights are active, products of many tokens go through the dense matrix, which is faster.

    Raises:
        ValueError: as ``block_linear``.
    """
    x = _as_autocast(x)
    _check(x, values, layout)
    rows = x.reshape(-1, layout.inputs)
    product = CsrProduct(layout, _csr_native(rows, layout, compiled))
    places = layout.ids if isinstance(layout, CsrSlots) else layout.columns
    y: Tensor = _ProductFunction.apply(rows, values, places, product, scoring)
    return y.reshape(*x.shape[:-1], layout.outputs)


@dataclass(frozen=True)
class BlockProduct:
    """The three products of a layer of blocks: by W, and where the layout is ``turned`` by its transpose."""

    layout: BlockLayout
    native: bool
    turned: bool

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """``weights`` are values of the type of x."""
        return self._times(x, weights, by_row=not self.turned)

    def input_gradient(self, dy: Tensor, weights: Tensor) -> Tensor:
        return self._times(dy, weights, by_row=self.turned)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """At least float32, of the layout's shape."""
        left, right = self.sides(dy, x)
        return block_weight_gradient(left, right, self.layout, self.native)

    def sides(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of which leftᵀ · right is the dense gradient, as the layout has it."""
        return (x, dy) if self.turned else (dy, x)

    def _times(self, x: Tensor, weights: Tensor, *, by_row: bool) -> Tensor:
        layout = self.layout
        with torch.autocast("cpu", enabled=False):
            if not self.native:
                product = torch_path.block_forward if by_row else torch_path.block_input_gradient
                return product(x, weights, layout)
            indices = layout.indices()
            lists, width = (indices.forward, layout.outputs) if by_row else (indices.backward, layout.inputs)
            blocks = weights.reshape(-1, layout.block, layout.block).contiguous()
            found: Tensor = torch.ops.nt_sparse.block_product(
                _rows(x), blocks, lists.pointers, lists.index, lists.slots, width, by_row
            )
            return found


def block_products(x: Tensor, layout: BlockLayout) -> BlockProduct:
    """The products themselves, without autograd, for functions that have a backward pass of their own."""
    native = _native(x, None, f"blocks of {layout.block}" if layout.block not in NATIVE_BLOCKS else None)
    return BlockProduct(layout, native, turned=False)


class _ProductFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        places: Tensor,
        product: BlockProduct | CsrProduct,
        scoring: Callable[[Tensor, Tensor], None] | None,
    ) -> Tensor:
        # places is saved so that autograd refuses a backward pass through blocks that have moved meanwhile.
        ctx.save_for_backward(x, values, places)
        ctx.product, ctx.scoring = product, scoring
        return product.forward(x, values.detach().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, values, _ = ctx.saved_tensors
        product, dx, dw = ctx.product, None, None
        if ctx.needs_input_grad[0]:
            dx = product.input_gradient(dy, values.to(dy.dtype))
        if ctx.needs_input_grad[1]:
            with torch.autocast("cpu", enabled=False):
                dw = product.weight_gradient(dy, x).to(values.dtype)
        if ctx.scoring is not None:
            ctx.scoring(*product.sides(dy, x))
        return dx, dw, None, None, None


def block_weight_gradient(dy: Tensor, x: Tensor, layout: BlockLayout, native: bool) -> Tensor:
    """The gradient of the active blocks for dy [tokens, outputs] and x [tokens, inputs], at least float32."""
    if not native:
        return torch_path.block_weight_gradient(dy, x, layout)
    indices = layout.indices()
    found: Tensor = torch.ops.nt_sparse.block_gradient(
        _rows(dy), _rows(x), indices.rows, indices.forward.index, layout.block
    )
    return found.reshape(layout.shape)


@dataclass(frozen=True)
class CsrProduct:
    """The three products of a layer of single weights."""

    layout: AnyCsr
    native: bool

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """``weights`` are values of the type of x."""
        if not self.native:
            with torch.autocast("cpu", enabled=False):
                return torch_path.csr_forward(x, weights, self.layout)
        return _csr_product(x, weights, self.layout.indices().forward, self.layout.outputs)

    def input_gradient(self, dy: Tensor, weights: Tensor) -> Tensor:
        if not self.native:
            with torch.autocast("cpu", enabled=False):
                return torch_path.csr_input_gradient(dy, weights, self.layout)
        return _csr_product(dy, weights, self.layout.indices().backward, self.layout.inputs)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """At least float32, of the layout's shape."""
        if not self.native:
            with torch.autocast("cpu", enabled=False):
                return torch_path.csr_weight_gradient(dy, x, self.layout)
        lists = self.layout.indices().forward
        found: Tensor = torch.ops.nt_sparse.csr_gradient(_rows(dy), _rows(x), lists.pointers, lists.index, lists.slots)
        return found

    def sides(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of which leftᵀ · right is the dense gradient."""
        return dy, x


def csr_products(x: Tensor, layout: AnyCsr) -> CsrProduct:
    """As :func:`block_products`, for x [tokens, inputs]."""
    return CsrProduct(layout, _csr_native(x, layout, None))


def _csr_native(x: Tensor, layout: AnyCsr, compiled: bool | None) -> bool:
    dense = layout.shape[0] > DENSE_FROM * layout.outputs * layout.inputs and len(x) >= MANY_TOKENS
    return _native(x, compiled, None) and not (dense and compiled is None)


def _csr_product(x: Tensor, weights: Tensor, lists: Lists, width: int) -> Tensor:
    found: Tensor = torch.ops.nt_sparse.csr_product(
        _rows(x), weights.contiguous(), lists.pointers, lists.index, lists.slots, width
    )
    return found


def _rows(x: Tensor) -> Tensor:
    """Any stride between rows is fine for the kernels, none within a row."""
    return x if x.stride(1) == 1 else x.contiguous()


def _as_autocast(x: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.dtype in NATIVE_TYPES and torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def _check(x: Tensor, values: Tensor, layout: BlockLayout | AnyCsr, *, turned: bool = False) -> None:
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
    inputs = layout.outputs if turned else layout.inputs
    if x.dim() < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x is {list(x.shape)}, but the layer has {inputs} inputs: they must be x's last dimension")
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
