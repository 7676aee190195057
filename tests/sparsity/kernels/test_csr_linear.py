"""Products over single active weights against the dense masked product, on every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import CsrLayout, layout_of_mask
from nt_pretrain.sparsity.kernels.linear import csr_linear
from tests.sparsity.kernels.reference import draw, near

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def layout_of(outputs: int, inputs: int, density: float, seed: int) -> CsrLayout:
    return layout_of_mask(torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < density)


def check(x: Tensor, layout: CsrLayout, compiled: bool, seed: int = 0) -> None:
    weight = draw((layout.outputs, layout.inputs), seed + 1, x.dtype)
    values = layout.from_dense(weight).requires_grad_()
    dense = weight * layout.mask()
    x = x.detach().requires_grad_()
    y = csr_linear(x, values, layout, compiled)
    dy = draw(tuple(y.shape), seed + 2, x.dtype)
    y.backward(dy)
    assert x.grad is not None and values.grad is not None and y.dtype == x.dtype
    flat_x, flat_dy = x.detach().reshape(-1, layout.inputs), dy.reshape(-1, layout.outputs)
    assert near(y.reshape(flat_dy.shape), flat_x, dense.t())
    assert near(x.grad.reshape(flat_x.shape), flat_dy, dense)
    assert near(layout.to_dense(values.grad), flat_dy.t(), flat_x, layout.mask())


@SETTINGS
@given(data=st.data())
def test_any_shape(path: bool, data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 150), "outputs"), data.draw(st.integers(1, 150), "inputs")
    density = data.draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]), "density")  # 0 and .02: empty rows and columns
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), "dtype")
    tokens = data.draw(st.one_of(st.integers(0, 40), st.integers(60, 200)), "tokens")
    seed = data.draw(st.integers(0, 2**31), "seed")
    check(draw((tokens, inputs), seed, dtype), layout_of(outputs, inputs, density, seed), path, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_layers_take_narrow_tiles(path: bool, dtype: torch.dtype) -> None:
    # 64 tokens of so many inputs would not fit into the cache, so tiles have 32.
    check(draw((150, 5000), 0, dtype), layout_of(20, 5000, 0.01, 0), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_are_not_contiguous(path: bool, dtype: torch.dtype) -> None:
    layout = layout_of(40, 50, 0.2, 0)
    check(draw((50, 90), 0, dtype).t(), layout, path)
    check(draw((3, 50, 30), 0, dtype).transpose(1, 2), layout, path)
    check(draw((50,), 0, dtype), layout, path)


def test_an_infinite_input_stays_where_it_is_read(path: bool) -> None:
    # The second of a pair of weights may be missing; it must not stand for 0 · inf.
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 3], mask[1, :3] = True, True
    layout = layout_of_mask(mask)
    x = torch.ones(5, 8, dtype=torch.bfloat16)
    x[:, 3] = torch.inf
    y = csr_linear(x[:, :8], torch.ones(layout.shape, dtype=torch.bfloat16), layout, path)
    assert y[:, 0].isinf().all()
    if path:
        assert (y[:, 1] == 3).all()


def test_the_number_of_threads_changes_no_bit(library: None) -> None:
    layout, before, results = layout_of(130, 70, 0.2, 0), torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        x = draw((300, 70), 1, torch.float32).requires_grad_()
        values = draw(layout.shape, 2, torch.float32).requires_grad_()
        y = csr_linear(x, values, layout, compiled=True)
        y.backward(draw((300, 130), 3, torch.float32))
        results.append((y.detach(), x.grad, values.grad))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck() -> None:
    layout = layout_of(6, 8, 0.3, 0)
    values = draw(layout.shape, 0, torch.float64).requires_grad_()
    x = draw((3, 8), 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: csr_linear(a, b, layout), (x, values), masked=True)


def test_what_does_not_fit_is_named() -> None:
    layout = layout_of(6, 8, 0.3, 0)
    with pytest.raises(ValueError, match=r"x is \[4, 7\].* 8 inputs"):
        csr_linear(torch.zeros(4, 7), torch.zeros(layout.shape), layout)
    with pytest.raises(ValueError, match=r"the values are \[3\]"):
        csr_linear(torch.zeros(4, 8), torch.zeros(3), layout)
    with pytest.raises(ValueError, match="no compiled kernels for float64"):
        csr_linear(torch.zeros(4, 8).double(), torch.zeros(layout.shape).double(), layout, compiled=True)
