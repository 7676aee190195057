"""Products over active blocks against the dense masked product, on every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.kernels.linear import block_linear
from tests.sparsity.kernels.reference import draw, near

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def layout_of(outputs: int, inputs: int, block: int, fan_in: int, seed: int) -> BlockLayout:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-outputs // block), -(-inputs // block)
    chosen = torch.stack([torch.randperm(columns, generator=generator)[:fan_in] for _ in range(rows)])
    return BlockLayout(outputs, inputs, block, chosen.int())


def check(x: Tensor, layout: BlockLayout, compiled: bool, seed: int = 0) -> None:
    """Forward pass and both gradients."""
    weight = draw((layout.outputs, layout.inputs), seed + 1, x.dtype)
    values = layout.from_dense(weight).requires_grad_()
    dense = weight * layout.mask()
    x = x.detach().requires_grad_()
    y = block_linear(x, values, layout, compiled)
    assert y.shape == (*x.shape[:-1], layout.outputs) and y.dtype == x.dtype
    dy = draw(tuple(y.shape), seed + 2, x.dtype)
    y.backward(dy)
    assert x.grad is not None and values.grad is not None and x.grad.shape == x.shape
    flat_x, flat_dy = x.detach().reshape(-1, layout.inputs), dy.reshape(-1, layout.outputs)
    assert near(y.reshape(flat_dy.shape), flat_x, dense.t())
    assert near(x.grad.reshape(flat_x.shape), flat_dy, dense)
    assert near(layout.to_dense(values.grad), flat_dy.t(), flat_x, layout.mask())
    assert torch.equal(layout.from_dense(layout.to_dense(values.grad)), values.grad), "a gradient in the padding"


@SETTINGS
@given(data=st.data())
def test_any_shape(path: bool, data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([16, 32, 64, 128]), "block")
    outputs, inputs = (
        data.draw(st.integers(1, 2 * block + 40), "outputs"),
        data.draw(st.integers(1, 3 * block), "inputs"),
    )
    fan_in = data.draw(st.integers(1, -(-inputs // block)), "fan_in")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), "dtype")
    tokens = data.draw(st.one_of(st.integers(0, 40), st.integers(90, 140)), "tokens")
    seed = data.draw(st.integers(0, 2**31), "seed")
    check(draw((tokens, inputs), seed, dtype), layout_of(outputs, inputs, block, fan_in, seed), path, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_full_density_and_one_block(path: bool, block: int, dtype: torch.dtype) -> None:
    check(draw((70, 3 * block), 0, dtype), layout_of(2 * block, 3 * block, block, 3, 0), path)
    check(draw((70, block), 0, dtype), layout_of(block, block, block, 1, 0), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_are_not_contiguous(path: bool, dtype: torch.dtype) -> None:
    layout = layout_of(64, 96, 32, 2, 0)
    check(draw((96, 50), 0, dtype).t(), layout, path)
    check(draw((50, 200), 0, dtype)[:, 7:103], layout, path)
    check(draw((5, 96, 7), 0, dtype).transpose(1, 2), layout, path)
    check(draw((1, 96), 0, dtype).expand(9, 96), layout, path)
    check(draw((96,), 0, dtype), layout, path)


def test_a_gradient_that_is_not_contiguous(path: bool) -> None:
    layout = layout_of(64, 96, 32, 2, 0)
    values, x = layout.from_dense(draw((64, 96), 0, torch.float32)).requires_grad_(), draw((40, 96), 1, torch.float32)
    block_linear(x, values, layout, path).sum().backward()
    assert values.grad is not None
    assert near(layout.to_dense(values.grad), torch.ones(64, 40), x, layout.mask())


def test_the_number_of_threads_changes_no_bit(library: None) -> None:
    layout = layout_of(300, 200, 16, 5, 0)
    x, dy = draw((333, 200), 1, torch.bfloat16), draw((333, 300), 2, torch.bfloat16)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        inputs, values = (
            x.clone().requires_grad_(),
            layout.from_dense(draw((300, 200), 3, torch.float32)).requires_grad_(),
        )
        y = block_linear(inputs, values, layout, compiled=True)
        y.backward(dy)
        results.append((y.detach(), inputs.grad, values.grad))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autocast_keeps_float32_gradients(path: bool) -> None:
    layout = layout_of(64, 64, 16, 2, 0)
    values = layout.from_dense(draw((64, 64), 0, torch.float32)).requires_grad_()
    x = draw((33, 64), 1, torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block_linear(x, values, layout, path)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and values.grad is not None
    assert x.grad.dtype == values.grad.dtype == torch.float32
    assert near(layout.to_dense(values.grad), torch.ones(64, 33), x.bfloat16(), layout.mask())


@pytest.mark.parametrize("outputs, inputs, block, fan_in", [(7, 9, 4, 2), (70, 130, 64, 2)])
def test_gradcheck(outputs: int, inputs: int, block: int, fan_in: int) -> None:
    layout = layout_of(outputs, inputs, block, fan_in, 0)
    values = layout.from_dense(draw((outputs, inputs), 0, torch.float64)).requires_grad_()
    x = draw((3, inputs), 1, torch.float64).requires_grad_()

    def product(given: Tensor, weights: Tensor) -> Tensor:
        return block_linear(given, layout.from_dense(layout.to_dense(weights)), layout)

    # Not block_linear alone: weights in the padding, which gradcheck would shift too, take no part.
    assert torch.autograd.gradcheck(product, (x, values), fast_mode=block == 64)


def test_moved_blocks_are_seen(path: bool) -> None:
    layout = layout_of(64, 128, 32, 2, 0)
    x, values = draw((8, 128), 0, torch.float32), draw(layout.shape, 1, torch.float32)
    block_linear(x, values, layout, path)
    layout.columns.copy_(3 - layout.columns)
    assert near(block_linear(x, values, layout, path), x, layout.to_dense(values).t())


def test_no_backward_through_moved_blocks(path: bool) -> None:
    layout = layout_of(64, 128, 32, 2, 0)
    y = block_linear(draw((8, 128), 0, torch.float32), torch.zeros(layout.shape, requires_grad=True), layout, path)
    layout.columns.copy_(3 - layout.columns)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "x, values, words",
    [
        (torch.zeros(4, 63), torch.zeros(4, 2, 16, 16), r"x is \[4, 63\].* 64 inputs"),
        (torch.zeros(4, 64), torch.zeros(4, 2, 16, 8), r"values are \[4, 2, 16, 8\].*layout has \[4, 2, 16, 16\]"),
        (torch.zeros(4, 64), torch.zeros(4, 2, 16, 16).bfloat16(), "x is float32 and the values are bfloat16"),
        (torch.zeros(4, 64).double(), torch.zeros(4, 2, 16, 16), "x is float64 and the values are float32"),
        (torch.zeros(4, 64).half(), torch.zeros(4, 2, 16, 16), "x is float16"),
        (torch.zeros(4, 64, dtype=torch.int32), torch.zeros(4, 2, 16, 16), "x is int32"),
        (torch.zeros(4, 64, device="meta"), torch.zeros(4, 2, 16, 16), "x is on meta.*run on the CPU"),
    ],
)
def test_what_does_not_fit_is_named(x: Tensor, values: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        block_linear(x, values, layout_of(64, 64, 16, 2, 0))


def test_compiled_kernels_for_other_blocks_are_refused() -> None:
    layout = layout_of(24, 24, 8, 2, 0)
    with pytest.raises(ValueError, match="no compiled kernels for blocks of 8"):
        block_linear(torch.zeros(2, 24), torch.zeros(layout.shape), layout, compiled=True)
    check(draw((5, 24), 0, torch.float32), layout, compiled=False)
