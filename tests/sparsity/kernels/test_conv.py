"""Convolutions over active blocks against the dense masked convolution in float64, on every path."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.sparsity.kernels.conv import block_conv, conv_dense_gradient, conv_matrix, conv_weight
from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.kernels.taps import Window
from tests.sparsity.kernels.reference import TOLERANCE, draw

SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def layout_of(outputs: int, channels: int, kernel: int, block: int, fan_in: int, seed: int = 0) -> BlockLayout:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-outputs // block), -(-kernel * kernel * channels // block)
    chosen = torch.stack([torch.randperm(columns, generator=generator)[:fan_in] for _ in range(rows)])
    return BlockLayout(outputs, kernel * kernel * channels, block, chosen.int())


def near(found: Tensor, expected: Tensor, size: Tensor) -> bool:
    """Within the tolerance of ``found``'s precision; ``size``: the same with all absolute values."""
    assert found.shape == expected.shape
    return bool(((found.double() - expected).abs() <= TOLERANCE[found.dtype] * size + 1e-30).all())


def with_gradients(x: Tensor, weight: Tensor, dy: Tensor | None, stride: int, padding: int) -> tuple[Tensor, ...]:
    """y, its gradient that was taken, dx and dW of torch's convolution in float64."""
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    y = F.conv2d(x, weight, stride=stride, padding=padding)
    y.backward(torch.ones_like(y) if dy is None else dy.double())
    assert x.grad is not None and weight.grad is not None
    return y.detach(), x.grad, weight.grad


def check(x: Tensor, layout: BlockLayout, kernel: int, stride: int, padding: int, path: bool, seed: int = 0) -> None:
    """Forward pass and both gradients."""
    weight = draw((layout.outputs, x.shape[1], kernel, kernel), seed + 1, x.dtype)
    mask = conv_weight(layout.mask(), kernel)
    values = layout.from_dense(conv_matrix(weight)).requires_grad_()
    x = x.detach().requires_grad_()
    y = block_conv(x, values, layout, kernel, stride, padding, path)
    dy = draw(tuple(y.shape), seed + 2, x.dtype)
    y.backward(dy)
    assert x.grad is not None and values.grad is not None and y.dtype == x.grad.dtype == x.dtype
    expected = with_gradients(x, weight * mask, dy, stride, padding)
    sizes = with_gradients(x.abs(), (weight * mask).abs(), dy.abs(), stride, padding)
    assert near(y, expected[0], sizes[0])
    assert near(x.grad, expected[1], sizes[1])
    assert near(layout.to_dense(values.grad), conv_matrix(expected[2] * mask), conv_matrix(sizes[2]))
    assert torch.equal(layout.from_dense(layout.to_dense(values.grad)), values.grad), "a gradient in the padding"


@SETTINGS
@given(data=st.data())
def test_any_shape(path: bool, data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([16, 32, 64, 128]), "block")
    kernel = data.draw(st.sampled_from([1, 3, 5] if block < 64 else [1, 3]), "kernel")
    stride, padding = data.draw(st.integers(1, 3), "stride"), data.draw(st.integers(0, 2), "padding")
    # A kernel of 1 has no taps to keep apart, so its channels need not be divisible.
    channels = data.draw(st.integers(1, 2 * block) if kernel == 1 else st.sampled_from([block, 2 * block]), "channels")
    outputs = data.draw(st.integers(1, block + 20), "outputs")
    fan_in = data.draw(st.integers(1, -(-kernel * kernel * channels // block)), "fan_in")
    least = max(1, kernel - 2 * padding)
    height, width = (data.draw(st.integers(least, least + 7), name) for name in ("height", "width"))
    pictures, seed = data.draw(st.integers(0, 3), "pictures"), data.draw(st.integers(0, 2**31), "seed")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), "dtype")
    x = draw((pictures, channels, height, width), seed, dtype)
    check(x, layout_of(outputs, channels, kernel, block, fan_in, seed), kernel, stride, padding, path, seed)


@BOTH
@pytest.mark.parametrize("block", [16, 64])
def test_full_density_and_one_block(path: bool, block: int, dtype: torch.dtype) -> None:
    x = draw((3, 2 * block, 9, 8), 0, dtype)
    check(x, layout_of(2 * block, 2 * block, 3, block, 18), 3, 1, 1, path)
    check(x[:, :block], layout_of(block, block, 3, block, 1), 3, 1, 1, path)


def test_blocks_at_one_tap_only(path: bool) -> None:
    """With a stride of 2 most pixels of the input were seen by no block at all."""
    layout = layout_of(32, 32, 3, 16, 1)
    layout.columns.fill_(2)
    check(draw((2, 32, 8, 8), 0, torch.float32), layout, 3, 2, 1, path)


@BOTH
def test_inputs_in_any_memory_order(path: bool, dtype: torch.dtype) -> None:
    layout = layout_of(32, 32, 3, 16, 5)
    check(draw((2, 32, 6, 7), 0, dtype).contiguous(memory_format=torch.channels_last), layout, 3, 1, 1, path)
    check(draw((2, 40, 12, 7), 0, dtype)[:, 3:35, ::2], layout, 3, 1, 1, path)
    check(draw((1, 32, 1, 1), 0, dtype).expand(2, 32, 5, 5), layout, 3, 1, 1, path)


def test_pictures_stay_in_channels_last(path: bool) -> None:
    layout, x = layout_of(32, 32, 3, 16, 5), draw((2, 32, 6, 7), 0, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = block_conv(x, torch.ones(layout.shape), layout, 3, 1, 1, path)
    y.sum().backward()
    assert x.grad is not None
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_the_number_of_threads_changes_no_bit(library: None) -> None:
    layout = layout_of(64, 64, 3, 16, 7)
    x, dy = draw((3, 64, 11, 9), 1, torch.bfloat16), draw((3, 64, 6, 5), 2, torch.bfloat16)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        inputs, values = x.clone().requires_grad_(), draw(layout.shape, 3, torch.float32).requires_grad_()
        y = block_conv(inputs, values, layout, 3, 2, 1, compiled=True)
        y.backward(dy)
        results.append((y.detach(), inputs.grad, values.grad))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autocast_keeps_float32_gradients(path: bool) -> None:
    layout = layout_of(32, 32, 3, 16, 4)
    values, x = draw(layout.shape, 0, torch.float32).requires_grad_(), draw((2, 32, 5, 5), 1, torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block_conv(x, values, layout, 3, 1, 1, path)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and values.grad is not None
    assert x.grad.dtype == values.grad.dtype == torch.float32
    dense = with_gradients(x.detach().bfloat16(), torch.zeros(32, 32, 3, 3), None, 1, 1)[2]
    torch.testing.assert_close(values.grad.double(), layout.from_dense(conv_matrix(dense)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "padding", "channels"), [(3, 2, 1, 4), (1, 2, 0, 5), (3, 1, 0, 8)])
def test_gradcheck(kernel: int, stride: int, padding: int, channels: int) -> None:
    layout = layout_of(6, channels, kernel, 4, 2)
    values = layout.from_dense(draw((6, kernel * kernel * channels), 0, torch.float64)).requires_grad_()
    x = draw((2, channels, 4, 3), 1, torch.float64).requires_grad_()

    def product(given: Tensor, weights: Tensor) -> Tensor:
        return block_conv(given, layout.from_dense(layout.to_dense(weights)), layout, kernel, stride, padding)

    assert torch.autograd.gradcheck(product, (x, values), fast_mode=True)


def test_moved_blocks_are_seen(path: bool) -> None:
    layout = layout_of(32, 32, 3, 16, 5)
    x = draw((2, 32, 8, 8), 0, torch.float32)
    check(x, layout, 3, 2, 1, path)
    layout.columns.copy_(17 - layout.columns)
    check(x, layout, 3, 2, 1, path)


def test_no_backward_through_moved_blocks(path: bool) -> None:
    layout = layout_of(32, 32, 3, 16, 5)
    y = block_conv(draw((1, 32, 4, 4), 0, torch.float32), torch.zeros(layout.shape, requires_grad=True), layout, 3)
    layout.columns.copy_(17 - layout.columns)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@BOTH
def test_scores_are_asked_for_with_what_makes_the_dense_gradient(path: bool, dtype: torch.dtype) -> None:
    layout = layout_of(32, 32, 3, 16, 5)
    x, values = draw((2, 32, 7, 7), 0, dtype), draw(layout.shape, 1, dtype).requires_grad_()
    asked: list[tuple[Tensor, Tensor, Window]] = []
    y = block_conv(x, values, layout, 3, 2, 1, path, scoring=lambda *given: asked.append(given))
    dy = draw(tuple(y.shape), 2, dtype)
    y.backward(dy)
    ((left, right, window),) = asked
    expected = with_gradients(x, torch.zeros(32, 32, 3, 3), dy, 2, 1)[2]
    assert torch.equal(left, dy)
    found = conv_dense_gradient(left, right, window)
    assert found.dtype == torch.bfloat16 and found.shape == (32, 9 * 32)
    torch.testing.assert_close(found.double(), conv_matrix(expected), rtol=2e-2, atol=0.1)


@pytest.mark.parametrize(
    ("x", "values", "kernel", "words"),
    [
        (torch.zeros(2, 15, 4, 4), torch.zeros(2, 2, 16, 16), 3, r"x is \[2, 15, 4, 4\].*288 inputs.*3 \* 3 \* chan"),
        (torch.zeros(2, 32, 4), torch.zeros(2, 2, 16, 16), 3, r"x is \[2, 32, 4\]"),
        (torch.zeros(2, 32, 4, 4), torch.zeros(2, 3, 16, 16), 3, r"values are \[2, 3, 16, 16\], but the layout"),
        (torch.zeros(2, 32, 4, 4), torch.zeros(2, 2, 16, 16).bfloat16(), 3, "x is float32 and the values are bfloat16"),
        (torch.zeros(2, 32, 4, 4).half(), torch.zeros(2, 2, 16, 16), 3, "x is float16"),
        (torch.zeros(2, 32, 4, 2), torch.zeros(2, 2, 16, 16), 3, "pictures of 4 x 2 .* smaller than a kernel of 3"),
        (torch.zeros(2, 32, 4, 4, device="meta"), torch.zeros(2, 2, 16, 16), 3, "x is on meta.*run on the CPU"),
        (torch.zeros(2, 32, 4, 4), torch.zeros(2, 2, 16, 16), 0, "a kernel of 0.* must be at least 1"),
    ],
)
def test_what_does_not_fit_is_named(x: Tensor, values: Tensor, kernel: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        block_conv(x, values, layout_of(32, 32, 3, 16, 2), kernel)


def test_blocks_over_two_taps_are_refused() -> None:
    layout = BlockLayout(16, 9 * 24, 16, torch.zeros(1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"24 channels are no multiple of blocks of 16.*one tap into the next"):
        block_conv(torch.zeros(1, 24, 4, 4), torch.zeros(layout.shape), layout, 3)
