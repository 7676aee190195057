"""y = x · Wᵀ where W's parameters are its active blocks, or its active single weights.

Blocks run on the CPU and on CUDA devices, single weights on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity.kernels import build, few_tokens, torch_path, triton_path
from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout, Lists

NATIVE_BLOCKS = (16, 32, 64, 128)
NATIVE_TYPES = (torch.float32, torch.bfloat16)
TYPES = (torch.float32, torch.bfloat16, torch.float64)

Path = Literal["compiled", "triton", "torch"]
"""Who multiplies blocks: compiled kernels of the CPU, Triton's of a GPU, or plain torch anywhere."""

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
        layout: its columns on the device of x.
        compiled: True demands kernels (compiled ones on the CPU, Triton's on a GPU), False plain torch; None takes
            kernels where they are to be had (float32 and bfloat16, blocks of 16, 32, 64 and 128).
        turned: ``layout`` and ``values`` are those of the transpose: x [..., layout.outputs] to y [..., layout.inputs].
        scoring: called in the backward pass with the two matrices (left [tokens, layout.outputs], right [tokens,
            layout.inputs]) of which leftᵀ · right is the dense gradient, as ``layout`` has it.

    Raises:
        ValueError: shapes, types or devices that do not fit, or kernels demanded that there are none of.
    """
    x = as_autocast(x)
    check(x, values, layout, layout.outputs if turned else layout.inputs, ("cpu", "cuda"))
    width = layout.inputs if turned else layout.outputs
    product, rows = BlockProduct(layout, block_path(x, compiled, layout.block), turned), x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        y: Tensor = _ProductFunction.apply(rows, values, layout.columns, product, scoring)
    else:
        y = product.forward(rows, values.to(x.dtype))  # a third of the overhead, which decoding feels
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
    x = as_autocast(x)
    check(x, values, layout, layout.inputs, ("cpu",))
    rows = x.reshape(-1, layout.inputs)
    product = CsrProduct(layout, _csr_native(rows, layout, compiled))
    if torch.is_grad_enabled():
        y: Tensor = _ProductFunction.apply(rows, values, _places(layout), product, scoring)
    else:
        y = product.forward(rows, values.to(x.dtype))
    return y.reshape(*x.shape[:-1], layout.outputs)


@dataclass(frozen=True)
class BlockProduct:
    """The three products of a layer of blocks: by W, and where the layout is ``turned`` by its transpose."""

    layout: BlockLayout
    path: Path
    turned: bool

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """``weights`` are values of the type of x."""
        return self._times(x, weights, by_row=not self.turned)

    def input_gradient(self, dy: Tensor, weights: Tensor) -> Tensor:
        return self._times(dy, weights, by_row=self.turned)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """At least float32, of the layout's shape."""
        left, right = self.sides(dy, x)
        return block_weight_gradient(left, right, self.layout, self.path)

    def sides(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of which leftᵀ · right is the dense gradient, as the layout has it."""
        return (x, dy) if self.turned else (dy, x)

    def _times(self, x: Tensor, weights: Tensor, *, by_row: bool) -> Tensor:
        layout = self.layout
        if self.path == "compiled" and few_tokens.are_few(x):
            return few_tokens.block_product(x, weights, layout, turned=not by_row)
        with torch.autocast(x.device.type, enabled=False):
            if self.path != "compiled":
                products = triton_path if self.path == "triton" else torch_path
                product = products.block_forward if by_row else products.block_input_gradient
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
    return BlockProduct(layout, block_path(x, None, layout.block), turned=False)


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
            with torch.autocast(dy.device.type, enabled=False):
                dw = product.weight_gradient(dy, x).to(values.dtype)
        if ctx.scoring is not None:
            ctx.scoring(*product.sides(dy, x))
        return dx, dw, None, None, None


def block_weight_gradient(dy: Tensor, x: Tensor, layout: BlockLayout, path: Path) -> Tensor:
    """The gradient of the active blocks for dy [tokens, outputs] and x [tokens, inputs], at least float32."""
    if path != "compiled":
        return (triton_path if path == "triton" else torch_path).block_weight_gradient(dy, x, layout)
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
        if few_tokens.are_few(x):
            return few_tokens.csr_product(x, weights, self.layout, turned=False)
        return _csr_product(x, weights, self.layout.indices().forward, self.layout.outputs)

    def input_gradient(self, dy: Tensor, weights: Tensor) -> Tensor:
        if not self.native:
            with torch.autocast("cpu", enabled=False):
                return torch_path.csr_input_gradient(dy, weights, self.layout)
        if few_tokens.are_few(dy):
            return few_tokens.csr_product(dy, weights, self.layout, turned=True)
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
    return is_native(x, compiled, None) and not (dense and compiled is None)


def _csr_product(x: Tensor, weights: Tensor, lists: Lists, width: int) -> Tensor:
    found: Tensor = torch.ops.nt_sparse.csr_product(
        _rows(x), weights.contiguous(), lists.pointers, lists.index, lists.slots, width
    )
    return found


def _places(layout: BlockLayout | AnyCsr) -> Tensor:
    """What an update of the topology changes in place."""
    return layout.ids if isinstance(layout, CsrSlots) else layout.columns


def _rows(x: Tensor) -> Tensor:
    """Any stride between rows is fine for the kernels, none within a row."""
    return x if x.stride(1) == 1 else x.contiguous()


def as_autocast(x: Tensor) -> Tensor:
    """``x`` in the type that autocast computes in, where it is on."""
    device = x.device.type
    if device in ("cpu", "cuda") and x.dtype in NATIVE_TYPES and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def check(x: Tensor, values: Tensor, layout: BlockLayout | AnyCsr, width: int, devices: tuple[str, ...]) -> None:
    """Raise unless the arguments of a product fit one another.

    Args:
        width: what the last dimension of x has to be.
        devices: kinds of devices that the product runs on.

    Raises:
        ValueError: what does not fit, and what to do.
    """
    if x.device.type not in devices or not x.device == values.device == _places(layout).device:
        where = " and on ".join({"cpu": "the CPU", "cuda": "CUDA devices"}[device] for device in devices)
        raise ValueError(
            f"x is on {x.device}, the values are on {values.device} and the layout's columns on "
            f"{_places(layout).device}: these products run on {where}; move all three to one of them"
        )
    fitting = values.dtype == x.dtype or (x.dtype, values.dtype) == (torch.bfloat16, torch.float32)
    if x.dtype not in TYPES or not fitting:
        raise ValueError(
            f"x is {_name(x)} and the values are {_name(values)}: both must be float32, bfloat16 or float64, "
            "or bfloat16 for x and float32 for the values"
        )
    if x.dim() < 1 or x.shape[-1] != width:
        raise ValueError(f"x is {list(x.shape)}, but the layer has {width} inputs: they must be x's last dimension")
    if values.shape != layout.shape:
        raise ValueError(
            f"the values are {list(values.shape)}, but the layout has {list(layout.shape)}: "
            "make the values with layout.from_dense, or as zeros of layout.shape"
        )


def block_path(x: Tensor, wanted: bool | None, block: int) -> Path:
    """Who multiplies blocks for ``x``: kernels where there are any, unless ``wanted`` decides.

    Raises:
        ValueError: kernels are demanded that there are none of.
    """
    obstacle = f"blocks of {block}" if block not in NATIVE_BLOCKS else None
    if is_fake(x):  # in a rehearsal, which needs shapes only and knows them of this path
        return "triton"
    if x.device.type == "cpu" and not triton_path.interpreting():
        return "compiled" if is_native(x, wanted, obstacle) else "torch"
    if x.dtype not in triton_path.TYPES:
        obstacle = _name(x)
    if wanted and obstacle:
        raise ValueError(f"there are no Triton kernels for {obstacle}; leave `compiled` out to run in plain torch")
    if wanted is False or obstacle or not triton_path.available():
        if wanted:
            raise ValueError("the Triton kernels cannot run (told above); leave `compiled` out to run in plain torch")
        return "torch"
    return "triton"


def is_native(x: Tensor, wanted: bool | None, obstacle: str | None) -> bool:
    """Whether the compiled kernels run on ``x``, which no ``obstacle`` forbids, unless ``wanted`` decides.

    Raises:
        ValueError: they are demanded and cannot.
    """
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
