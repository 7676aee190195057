"""Products over single weights in slots of any order give the bits of those in row order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots, slots_of_mask
from nt_pretrain.sparsity.kernels.layout import LayoutError, layout_of_mask
from nt_pretrain.sparsity.kernels.linear import csr_linear, csr_products
from tests.sparsity.kernels.reference import draw, near

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def shuffled(mask: torch.Tensor, seed: int) -> CsrSlots:
    ids = mask.flatten().nonzero().view(-1)
    return CsrSlots(*mask.shape, ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))])


def mask_of(outputs: int, inputs: int, density: float, seed: int) -> torch.Tensor:
    return torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < density


@SETTINGS
@given(data=st.data())
def test_the_bits_of_row_order(path: bool, data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 150), "outputs"), data.draw(st.integers(1, 150), "inputs")
    density = data.draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]), "density")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), "dtype")
    tokens = data.draw(st.one_of(st.integers(0, 40), st.integers(60, 200)), "tokens")
    seed = data.draw(st.integers(0, 2**31), "seed")
    mask = mask_of(outputs, inputs, density, seed)
    weight, dy = draw((outputs, inputs), seed, dtype), draw((tokens, outputs), seed + 1, dtype)
    found = []
    for layout in (shuffled(mask, seed), layout_of_mask(mask)):
        values = layout.from_dense(weight).requires_grad_()
        x = draw((tokens, inputs), seed + 2, dtype).requires_grad_()
        y = csr_linear(x, values, layout, path)
        y.backward(dy)
        assert x.grad is not None and values.grad is not None
        found.append((y.detach(), x.grad, layout.to_dense(values.grad)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_of_a_layer_that_is_half_full_go_through_the_dense_matrix(
    library: None, dtype: torch.dtype
) -> None:
    for density, tokens, dense in ((0.6, 64, True), (0.6, 63, False), (0.4, 64, False)):
        layout, x = shuffled(mask_of(80, 70, density, 0), 1), draw((tokens, 70), 2, dtype)
        weight = draw((80, 70), 3, dtype)
        assert csr_products(x, layout).native is not dense
        assert near(csr_linear(x, layout.from_dense(weight), layout), x, (weight * layout.mask()).t())


def test_gradcheck() -> None:
    layout = shuffled(mask_of(6, 8, 0.4, 0), 1)
    values = draw(layout.shape, 0, torch.float64).requires_grad_()
    x = draw((3, 8), 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: csr_linear(a, b, layout), (x, values))


def test_a_moved_weight_is_read_at_its_new_place(path: bool) -> None:
    layout = CsrSlots(3, 4, torch.tensor([10, 1]))
    values, x = torch.tensor([2.0, 3.0], requires_grad=True), torch.arange(1.0, 5.0)
    assert csr_linear(x, values, layout, path).tolist() == [6.0, 0.0, 6.0]
    layout.ids[0] = 4
    y = csr_linear(x, values, layout, path)
    assert y.tolist() == [6.0, 2.0, 0.0] and layout.mask().nonzero().tolist() == [[0, 1], [1, 0]]
    layout.ids[1] = 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_of_mask_and_dense_forms() -> None:
    mask = mask_of(7, 5, 0.5, 3)
    layout, weight = slots_of_mask(mask), draw((7, 5), 0, torch.float32)
    assert bool((layout.ids.diff() > 0).all()) and torch.equal(layout.mask(), mask)
    assert torch.equal(layout.to_dense(layout.from_dense(weight)), weight * mask)


def test_what_is_no_layout_is_named() -> None:
    with pytest.raises(LayoutError, match=r"slots [02] and [02] both hold weight 5"):
        CsrSlots(3, 4, torch.tensor([5, 2, 5]))
    with pytest.raises(LayoutError, match="ids holds -1 to 11, but a layer of 3 × 4 has the weights 0 to 11"):
        CsrSlots(3, 4, torch.tensor([11, -1]))
    with pytest.raises(LayoutError, match="ids holds 3 to 12"):
        CsrSlots(3, 4, torch.tensor([12, 3]))
    with pytest.raises(LayoutError, match=r"flat int64 tensor on the CPU, not int32 \[2\]"):
        CsrSlots(3, 4, torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(LayoutError, match="a layer of 0 × 4"):
        CsrSlots(0, 4, torch.tensor([], dtype=torch.int64))
    layout = CsrSlots(3, 4, torch.tensor([5, 2]))
    with pytest.raises(LayoutError, match=r"shape \[4, 3\] for a layout of 3 × 4"):
        layout.from_dense(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"the values are \[2, 1\], but the layout has \[2\]"):
        csr_linear(torch.zeros(1, 4), torch.zeros(2, 1), layout)
