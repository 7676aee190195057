"""Convolutions whose parameters are their active blocks of outputs × input channels, each at one tap of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity.kernels import linear
from nt_pretrain.sparsity.kernels.layout import BlockLayout, LayoutError
from nt_pretrain.sparsity.kernels.taps import (
    ConvLists,
    Window,
    backward_lists,
    backward_taps,
    by_column,
    forward_lists,
    forward_taps,
)


def block_conv(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    compiled: bool | None = None,
    *,
    scoring: Callable[[Tensor, Tensor, Window], None] | None = None,
) -> Tensor:
    """x [B, channels, Y, X] to y [B, outputs, Y', X'], channels_last, in the type of x (of autocast, where it is on).

    What each tap of the kernel sees is gathered for a tile of pixels at a time and multiplied as a matrix; with a
    kernel of 1 that is the product of a matrix of pixels. The kernels read channels_last: other x are copied.

    Args:
        values: [block rows, fan_in, block, block], of the type of x, or float32 under a bfloat16 x (``block_linear``).
        layout: of the weight as the matrix [outputs, kernel * kernel * channels] (``conv_matrix``).
        kernel, stride, padding: of both directions.
        compiled: as ``block_linear``.
        scoring: called in the backward pass with (dy, x, how the kernel moves), of which ``conv_dense_gradient`` makes
            the dense gradient of that matrix.

    Raises:
        ValueError: shapes, types or devices that do not fit, or compiled kernels demanded that there are none of.
    """
    x = linear.as_autocast(x)
    _check(x, values, layout, kernel, stride, padding)
    window = Window(kernel, stride, padding, x.shape[2], x.shape[3])
    product = ConvProduct(layout, window, _native(x, compiled, layout.block))
    y: Tensor = _Conv.apply(x, values, layout.columns, product, scoring)
    return y


def conv_matrix(weight: Tensor) -> Tensor:
    """[outputs, channels, k, k] as the matrix [outputs, k * k * channels] that a layout is of; a matrix as it is."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def conv_weight(matrix: Tensor, kernel: int) -> Tensor:
    """The inverse of ``conv_matrix``, a view in channels_last memory order."""
    return matrix.unflatten(1, (kernel, kernel, -1)).permute(0, 3, 1, 2)


def conv_dense_gradient(dy: Tensor, x: Tensor, window: Window, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The dense gradient of the weight as the matrix [outputs, kernel * kernel * channels], by torch's convolution.

    Args:
        dy: [B, outputs, Y', X'].
        x: [B, channels, Y, X].
        dtype: of the products and of the result.
    """
    like = x.new_zeros(dy.shape[1], x.shape[1], window.kernel, window.kernel, dtype=dtype)
    if len(x) == 0:
        return conv_matrix(like)
    with torch.autocast(x.device.type, enabled=False):
        left, right = dy.detach().to(dtype), x.detach().to(dtype)
        gradient = _convolution_backward(left, right, like, window, (False, True))[1]
    assert gradient is not None
    return conv_matrix(gradient)


@dataclass(frozen=True)
class ConvProduct:
    """The three products of a convolution with active blocks over pictures of one size."""

    layout: BlockLayout
    window: Window
    native: bool

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """``weights`` are values of the type of x."""
        layout, window = self.layout, self.window
        if not self.native:
            return F.conv2d(x, self._dense(weights), stride=window.stride, padding=window.padding)
        lists = layout.derived("conv forward", lambda: forward_lists(layout))
        found: Tensor = torch.ops.nt_sparse.conv_product(
            _pixels(x), self._blocks(weights), lists.tensors(), forward_taps(window).tensors(), len(x),
            window.out_pixels, layout.outputs, True,
        )  # fmt: skip
        return _picture(found, len(x), window.out_height, window.out_width)

    def input_gradient(self, dy: Tensor, weights: Tensor) -> Tensor:
        layout, window = self.layout, self.window
        channels = layout.inputs // window.kernel**2
        if not self.native:
            like = dy.new_empty(len(dy), channels, window.height, window.width)
            dx = _convolution_backward(dy, like, self._dense(weights), window, (True, False))[0]
            assert dx is not None
            return dx
        found: Tensor = torch.ops.nt_sparse.conv_product(
            _pixels(dy), self._blocks(weights), self._backward_lists().tensors(), backward_taps(window).tensors(),
            len(dy), window.pixels, channels, False,
        )  # fmt: skip
        return _picture(found, len(dy), window.height, window.width)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """At least float32, of the layout's shape."""
        layout, window = self.layout, self.window
        if not self.native:
            wide = torch.promote_types(x.dtype, torch.float32)
            return layout.from_dense(conv_dense_gradient(dy, x, window, wide))
        rows, columns, slots = layout.derived("conv by column", lambda: by_column(layout))
        found: Tensor = torch.ops.nt_sparse.conv_gradient(
            _pixels(dy), _pixels(x), rows, columns, slots, forward_taps(window).sources, len(x), layout.block
        )
        return found.reshape(layout.shape)

    def _backward_lists(self) -> ConvLists:
        kernel, stride, padding = self.window.kernel, self.window.stride, self.window.padding
        key = ("conv backward", kernel, stride, padding)
        return self.layout.derived(key, lambda: backward_lists(self.layout, kernel, stride, padding))

    def _blocks(self, weights: Tensor) -> Tensor:
        return weights.reshape(-1, self.layout.block, self.layout.block).contiguous()

    def _dense(self, weights: Tensor) -> Tensor:
        return conv_weight(self.layout.to_dense(weights), self.window.kernel)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        columns: Tensor,
        product: ConvProduct,
        scoring: Callable[[Tensor, Tensor, Window], None] | None,
    ) -> Tensor:
        if product.native:
            x = x.contiguous(memory_format=torch.channels_last)
        # columns is saved so that autograd refuses a backward pass through blocks that have moved meanwhile.
        ctx.save_for_backward(x, values, columns)
        ctx.product, ctx.scoring = product, scoring
        with torch.autocast(x.device.type, enabled=False):
            return product.forward(x, values.detach().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, values, _ = ctx.saved_tensors
        product, dx, dw = ctx.product, None, None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = product.input_gradient(dy, values.to(dy.dtype))
            if ctx.needs_input_grad[1]:
                dw = product.weight_gradient(dy, x).to(values.dtype)
        if ctx.scoring is not None:
            ctx.scoring(dy, x, product.window)
        return dx, dw, None, None, None


def _pixels(x: Tensor) -> Tensor:
    """[B, C, Y, X] as [B * Y * X, C], without a copy where it is channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().reshape(-1, x.shape[1])


def _picture(pixels: Tensor, pictures: int, height: int, width: int) -> Tensor:
    return pixels.reshape(pictures, height, width, pixels.shape[1]).permute(0, 3, 1, 2)


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, window: Window, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [window.stride] * 2, [window.padding] * 2, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return dx, dw


def _check(x: Tensor, values: Tensor, layout: BlockLayout, kernel: int, stride: int, padding: int) -> None:
    if min(kernel, stride) < 1 or padding < 0:
        raise ValueError(
            f"a kernel of {kernel}, a stride of {stride} and a padding of {padding} move over no picture: kernel and "
            "stride must be at least 1, padding at least 0"
        )
    if x.dim() != 4 or kernel * kernel * x.shape[1] != layout.inputs:
        raise ValueError(
            f"x is {list(x.shape)}, but the layout has {layout.inputs} inputs: x must be [B, channels, Y, X] with "
            f"{kernel} * {kernel} * channels = {layout.inputs}"
        )
    if kernel > 1 and x.shape[1] % layout.block:
        raise LayoutError(
            f"{x.shape[1]} channels are no multiple of blocks of {layout.block}, and blocks of a {kernel} x {kernel} "
            "kernel may not reach from one tap into the next: take smaller blocks or a dense convolution"
        )
    if min(x.shape[2:]) + 2 * padding < kernel:
        raise ValueError(
            f"pictures of {x.shape[2]} x {x.shape[3]} with a padding of {padding} are smaller than a kernel of {kernel}"
        )
    linear.check(x.movedim(1, -1), values, layout, x.shape[1], ("cpu", "cuda"))


def _native(x: Tensor, wanted: bool | None, block: int) -> bool:
    """Whether the compiled kernels run. On other devices, and on shapes alone, torch's own convolutions do."""
    if x.device.type == "cpu" and not is_fake(x):
        return linear.is_native(x, wanted, None if block in linear.NATIVE_BLOCKS else f"blocks of {block}")
    if wanted:
        raise ValueError(
            f"there are no compiled convolutions on {x.device}; leave `compiled` out to run through the dense weight"
        )
    return False
