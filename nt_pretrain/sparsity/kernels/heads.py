"""The same sparse layer of all heads in one call: their weights as one block diagonal with holes.

On a GPU that is one launch, which fills the device where one head's layer would not. On a CPU the heads follow one
another: measured, one call gains nothing there from some tens of tokens on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nt_pretrain.sparsity import stk_path
from nt_pretrain.sparsity.kernels import linear, triton_path
from nt_pretrain.sparsity.kernels.layout import BlockLayout, LayoutError

Joint = Literal["triton", "stk"]
"""Who multiplies the heads together: our Triton kernels, or the products of stk, which megablocks is made of."""


@dataclass
class HeadsLayout:
    """The layouts of one layer of all heads: equal shapes, blocks and fan-in, on one device; blocks as they are.

    Raises:
        LayoutError: no head, or heads that differ.
    """

    layouts: tuple[BlockLayout, ...]
    _joined: dict[bool, tuple[tuple[int, ...], BlockLayout]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.layouts:
            raise LayoutError("the layouts of no head are given: at least one is needed")
        first = _kind(self.layouts[0])
        for head, layout in enumerate(self.layouts):
            if _kind(layout) != first:
                raise LayoutError(
                    f"head 0 is {first} and head {head} is {_kind(layout)}: heads that run together need the same "
                    "shape, block, fan-in and device; run these one by one"
                )

    @property
    def heads(self) -> int:
        return len(self.layouts)

    def joined(self, shared: bool) -> BlockLayout:
        """All heads as one layout: their block rows one below the other, each head's filled up to whole blocks.

        Args:
            shared: columns count through one input of all heads; otherwise through as many inputs as there are heads.
        """
        versions = tuple(layout.columns._version for layout in self.layouts)
        known = self._joined.get(shared)
        if known is None or known[0] != versions:
            one, inputs = self.layouts[0], 1 if shared else self.heads
            across = one.block_columns
            tables = [layout.columns + (0 if shared else i * across) for i, layout in enumerate(self.layouts)]
            outputs = self.heads * one.block_rows * one.block
            made = BlockLayout(outputs, inputs * across * one.block, one.block, torch.cat(tables))
            known = self._joined[shared] = (versions, made)
        return known[1]


def heads_linear(
    x: Tensor,
    values: Sequence[Tensor],
    heads: HeadsLayout,
    *,
    shared: bool = False,
    turned: bool = False,
    by: Joint | None = None,
) -> Tensor:
    """The layer of all heads: to y [heads, ..., outputs], as ``block_linear`` of each head would.

    Args:
        x: [heads, ..., inputs]; with ``shared`` [..., inputs], which all heads read.
        values: of each head, [block rows, fan_in, block, block], as for ``block_linear``.
        turned: as for ``block_linear``: x [..., outputs] to y [..., inputs].
        by: None takes the Triton kernels where they run, otherwise one head after another; a name demands it. stk
            rounds the gradient of float32 values to the type of x.

    Raises:
        ValueError: what ``block_linear`` raises, another number of heads, or a way demanded that cannot be gone.
        ImportError: stk is demanded and not installed.
    """
    one, count = heads.layouts[0], heads.heads
    if len(values) != count or (not shared and x.shape[:1] != (count,)):
        raise ValueError(
            f"x is {list(x.shape)} and there are values of {len(values)} heads, but layouts of {count}: give each head "
            "its values and, unless they share one, its x"
        )
    x = linear.as_autocast(x)
    width, wide = (one.outputs, one.inputs) if turned else (one.inputs, one.outputs)
    for each, layout in zip(values, heads.layouts, strict=True):
        linear.check(x, each, layout, width, ("cpu", "cuda"))
    if by == "stk":
        stk_path.ensure(x, one.block)
    elif linear.block_path(x, True if by else None, one.block) != "triton":
        if by:
            raise ValueError(f"the Triton kernels need a CUDA device, x is on {x.device}: leave `by` out")
        parts = [x] * count if shared else list(x.unbind(0))
        each_head = zip(parts, values, heads.layouts, strict=True)
        return torch.stack([linear.block_linear(part, own, layout, turned=turned) for part, own, layout in each_head])
    between = x.shape[:-1] if shared else x.shape[1:-1]
    flat = x.reshape(1 if shared else count, -1, width)
    if turned and shared:
        flat = flat.expand(count, -1, -1)  # there each head's input is what the kernels call its output
    y: Tensor = _HeadsProduct.apply(flat, heads, by or "triton", turned, *values)
    return y.reshape(count, *between, wide)


class _HeadsProduct(torch.autograd.Function):
    """x [inputs, tokens, width], one input or one for each head, to [heads, tokens, wide]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: HeadsLayout, by: Joint, turned: bool, *values: Tensor) -> Tensor:
        ctx.save_for_backward(x, *values, *(layout.columns for layout in heads.layouts))
        ctx.heads, ctx.by, ctx.turned = heads, by, turned
        with torch.autocast(x.device.type, enabled=False):
            return _product(x, _together(values, x.dtype), heads, by, turned, inputs=len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        heads, by, turned = ctx.heads, ctx.by, ctx.turned
        x, values = ctx.saved_tensors[0], ctx.saved_tensors[1 : 1 + heads.heads]
        dx, parts = None, [None] * heads.heads
        with torch.autocast(dy.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = _product(dy, _together(values, dy.dtype), heads, by, not turned, inputs=len(x))
            if any(ctx.needs_input_grad[4:]):
                outer, inner = (x, dy) if turned else (dy, x)
                block, joined = heads.layouts[0].block, heads.joined(len(x) == 1)
                outer, inner = triton_path.padded(outer, block), triton_path.padded(inner, block)
                made = _products_of(by).weight_gradient(outer, inner, joined, heads.heads, len(x))
                parts = [part.to(of.dtype) for part, of in zip(made.chunk(heads.heads), values, strict=True)]
        return dx, None, None, None, *parts


def _product(x: Tensor, weights: Tensor, heads: HeadsLayout, by: Joint, turned: bool, inputs: int) -> Tensor:
    one, joined, products = heads.layouts[0], heads.joined(inputs == 1), _products_of(by)
    x = triton_path.padded(x, one.block)
    made: Tensor
    if turned:
        made = products.input_gradient(x, weights, joined, heads.heads, inputs)
        return made.narrow(2, 0, one.inputs)
    made = products.forward(x, weights, joined, heads.heads, inputs)
    return made.narrow(2, 0, one.outputs)


def _products_of(by: Joint) -> Any:
    return stk_path if by == "stk" else triton_path


def _together(values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """[heads * block rows, fan_in, block, block], rounded to ``dtype`` on the way: one copy."""
    made = values[0].new_empty(len(values), *values[0].shape, dtype=dtype)
    for place, each in zip(made.unbind(0), values, strict=True):
        place.copy_(each.detach())
    return made.flatten(0, 1)


def _kind(layout: BlockLayout) -> str:
    return (
        f"{layout.outputs} × {layout.inputs} in blocks of {layout.block} with a fan-in of {layout.fan_in} on "
        f"{layout.columns.device}"
    )
