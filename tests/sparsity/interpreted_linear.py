"""Layers on the path of a GPU against dense products, in triton's interpreter: test_gpu_path.py starts this process.

There tensors on the CPU stand for those of a GPU; the rest of the way is the same.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.sparsity.kernels import linear, triton_path
from nt_pretrain.sparsity.kernels.heads import HeadsLayout, heads_linear
from nt_pretrain.sparsity.kernels.layout import BlockLayout, LayoutError
from nt_pretrain.sparsity.kernels.linear import block_linear
from tests.sparsity.kernels.reference import draw, near

needs_stk = pytest.mark.skipif(importlib.util.find_spec("stk") is None, reason="stanford-stk is not installed")


def layout_of(outputs: int, inputs: int, block: int, fan_in: int, seed: int) -> BlockLayout:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-outputs // block), -(-inputs // block)
    chosen = torch.stack([torch.randperm(columns, generator=generator)[:fan_in] for _ in range(rows)])
    return BlockLayout(outputs, inputs, block, chosen.int())


def ensure_right(x: Tensor, layout: BlockLayout, turned: bool, seed: int = 0) -> None:
    weight = draw((layout.outputs, layout.inputs), seed + 1, x.dtype).to(x.device)
    values = layout.from_dense(weight).requires_grad_()
    dense = weight * layout.mask()
    forward = dense if turned else dense.t()
    x = x.detach().requires_grad_()
    y = block_linear(x, values, layout, turned=turned)
    dy = draw(tuple(y.shape), seed + 2, x.dtype).to(x.device)
    y.backward(dy)
    assert x.grad is not None and values.grad is not None
    flat_x, flat_dy = x.detach().flatten(0, -2), dy.flatten(0, -2)
    assert near(y.flatten(0, -2), flat_x, forward)
    assert near(x.grad.flatten(0, -2), flat_dy, forward.t())
    outer, inner = (flat_x, flat_dy) if turned else (flat_dy, flat_x)
    assert near(layout.to_dense(values.grad), outer.t(), inner, layout.mask())
    assert torch.equal(layout.from_dense(layout.to_dense(values.grad)), values.grad), "a gradient in the padding"


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape_both_ways(data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([16, 32]), "block")
    outputs, inputs = data.draw(st.integers(1, 70), "outputs"), data.draw(st.integers(1, 70), "inputs")
    fan_in = data.draw(st.integers(1, -(-inputs // block)), "fan_in")
    layout, turned = layout_of(outputs, inputs, block, fan_in, 0), data.draw(st.booleans(), "turned")
    tokens = data.draw(st.sampled_from([0, 1, 17]), "tokens")
    x = draw((2, tokens, outputs if turned else inputs), 3, torch.float32)
    assert linear.block_path(x, None, block) == "triton"
    ensure_right(x, layout, turned)


@pytest.mark.parametrize("turned", [False, True])
def test_double_precision_goes_through_plain_torch(turned: bool) -> None:
    x = draw((5, 48), 0, torch.float64)
    assert linear.block_path(x, None, 16) == "torch"
    ensure_right(x, layout_of(48, 48, 16, 2, 0), turned)
    with pytest.raises(ValueError, match="no Triton kernels for float64"):
        block_linear(x, torch.zeros(3, 2, 16, 16).double(), layout_of(48, 48, 16, 2, 0), compiled=True)


def test_moved_blocks_are_seen_and_no_backward_goes_through_them() -> None:
    layout = layout_of(64, 128, 32, 2, 0)
    x, values = draw((8, 128), 0, torch.float32), draw(layout.shape, 1, torch.float32).requires_grad_()
    y = block_linear(x, values, layout)
    layout.columns.copy_(3 - layout.columns)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert near(block_linear(x, values, layout), x, layout.to_dense(values).t())


def heads_of(
    outputs: int, inputs: int, block: int, fan_in: int, count: int, device: str = "cpu"
) -> tuple[HeadsLayout, list[Tensor]]:
    drawn = [layout_of(outputs, inputs, block, fan_in, head) for head in range(count)]
    layouts = tuple(BlockLayout(outputs, inputs, block, each.columns.to(device)) for each in drawn)
    weights = [draw((outputs, inputs), 10 + head, torch.float32).to(device) for head in range(count)]
    return HeadsLayout(layouts), [each.from_dense(own) for each, own in zip(layouts, weights, strict=True)]


def ensure_heads(
    x: Tensor, heads: HeadsLayout, values: list[Tensor], by: str | None, close: float = 1e-4, **how: bool
) -> None:
    """Together as one by one: outputs and all gradients."""
    results = []
    for together in (True, False):
        inputs, own = x.clone().requires_grad_(), [each.clone().requires_grad_() for each in values]
        if together:
            y = heads_linear(inputs, own, heads, by=by, **how)
        else:
            parts = [inputs] * heads.heads if how.get("shared") else list(inputs)
            each = zip(parts, own, heads.layouts, strict=True)
            made = [block_linear(a, b, c, compiled=False, turned=how.get("turned", False)) for a, b, c in each]
            y = torch.stack(made)
        y.backward(draw(tuple(y.shape), 7, x.dtype).to(x.device))
        results.append([y.detach(), inputs.grad, *(each.grad for each in own)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=close, atol=close)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_heads_together_as_one_by_one(shared: bool, turned: bool) -> None:
    heads, values = heads_of(40, 50, 16, 2, 3)
    width = 40 if turned else 50
    shape = (2, 5, width) if shared else (3, 2, 5, width)
    ensure_heads(draw(shape, 0, torch.float32), heads, values, None, shared=shared, turned=turned)


def test_heads_see_moved_blocks() -> None:
    heads, values = heads_of(32, 64, 16, 2, 2)
    x = draw((2, 6, 64), 0, torch.float32)
    ensure_heads(x, heads, values, "triton")
    heads.layouts[1].columns.copy_(3 - heads.layouts[1].columns)
    ensure_heads(x, heads, values, "triton")


@needs_stk
@pytest.mark.parametrize(("shared", "turned"), [(False, False), (True, False), (False, True), (True, True)])
def test_heads_together_by_stk(shared: bool, turned: bool) -> None:
    heads, values = heads_of(200, 300, 128, 2, 2)
    width = 200 if turned else 300
    shape = (130, width) if shared else (2, 130, width)
    ensure_heads(draw(shape, 0, torch.float32), heads, values, "stk", shared=shared, turned=turned)


@needs_stk
def test_stk_has_blocks_of_128_only_and_takes_no_tokens_too() -> None:
    heads, values = heads_of(32, 64, 16, 2, 2)
    with pytest.raises(ValueError, match="blocks of 16: stk has blocks of 128 only"):
        heads_linear(torch.zeros(2, 5, 64), values, heads, by="stk")
    heads, values = heads_of(128, 128, 128, 1, 2)
    assert heads_linear(torch.zeros(2, 0, 128), values, heads, by="stk").shape == (2, 0, 128)


def test_heads_that_do_not_fit_are_named() -> None:
    one, other = layout_of(32, 64, 16, 2, 0), layout_of(32, 64, 16, 3, 0)
    with pytest.raises(LayoutError, match=r"head 0 is 32 × 64 .* fan-in of 2 .* head 1 is .* fan-in of 3"):
        HeadsLayout((one, other))
    heads, values = heads_of(32, 64, 16, 2, 2)
    with pytest.raises(ValueError, match=r"x is \[3, 5, 64\] and there are values of 2 heads, but layouts of 2"):
        heads_linear(torch.zeros(3, 5, 64), values, heads)
    with pytest.raises(ValueError, match=r"x is \[2, 5, 60\], but the layer has 64 inputs"):
        heads_linear(torch.zeros(2, 5, 60), values, heads)


def test_nothing_was_told_about_a_missing_triton(capfd: pytest.CaptureFixture[str]) -> None:
    assert triton_path.available() and not capfd.readouterr().err
