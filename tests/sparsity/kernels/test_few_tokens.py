"""Products for few tokens against the dense masked product, at every level of instructions, on one and two threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.sparsity.kernels import few_tokens
from nt_pretrain.sparsity.kernels.few_tokens import FEW, block_product, csr_product
from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout, layout_of_mask
from nt_pretrain.sparsity.kernels.linear import block_linear, csr_linear
from tests.sparsity.kernels.reference import draw, near

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["AVX-512", "portable"])
def level(request: pytest.FixtureRequest, library: None) -> Iterator[None]:
    wanted = {"AVX-512": 1, "portable": 0}[request.param]
    found = torch.ops.nt_sparse.limit_level(wanted)
    yield pytest.skip(f"this processor has no {request.param}") if found != wanted else None
    torch.ops.nt_sparse.limit_level(2)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def block_layout(outputs: int, inputs: int, block: int, fan_in: int, seed: int) -> BlockLayout:
    chosen = torch.rand(-(-outputs // block), -(-inputs // block), generator=torch.Generator().manual_seed(seed))
    return BlockLayout(outputs, inputs, block, chosen.topk(fan_in).indices.int())


def csr_layout(outputs: int, inputs: int, density: float, seed: int) -> CsrLayout:
    return layout_of_mask(torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < density)


def check(layout: BlockLayout | CsrLayout, tokens: int, dtype: torch.dtype, seed: int) -> None:
    """Both orientations."""
    product = block_product if isinstance(layout, BlockLayout) else csr_product
    weight = draw((layout.outputs, layout.inputs), seed, dtype)
    values, dense = layout.from_dense(weight), weight * layout.mask()
    x = draw((tokens, layout.inputs), seed + 1, dtype)
    y = product(x, values, layout, turned=False)
    assert y.shape == (tokens, layout.outputs) and y.dtype == dtype and near(y, x, dense.t())
    x = draw((tokens, layout.outputs), seed + 2, dtype)
    y = product(x, values, layout, turned=True)
    assert y.shape == (tokens, layout.inputs) and y.dtype == dtype and near(y, x, dense)


@SETTINGS
@given(data=st.data())
def test_blocks_of_any_shape(level: None, threads: None, data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([16, 32, 64, 128]), "block")
    outputs = data.draw(st.integers(1, 2 * block + 40), "outputs")
    inputs = data.draw(st.integers(1, 3 * block), "inputs")
    fan_in = data.draw(st.integers(1, -(-inputs // block)), "fan_in")
    tokens, seed = data.draw(st.integers(0, FEW), "tokens"), data.draw(st.integers(0, 2**31), "seed")
    check(block_layout(outputs, inputs, block, fan_in, seed), tokens, data.draw(st.sampled_from(TYPES)), seed)


@SETTINGS
@given(data=st.data())
def test_single_weights_of_any_shape(level: None, threads: None, data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 300), "outputs"), data.draw(st.integers(1, 300), "inputs")
    density = data.draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]), "density")
    tokens, seed = data.draw(st.integers(0, FEW), "tokens"), data.draw(st.integers(0, 2**31), "seed")
    check(csr_layout(outputs, inputs, density, seed), tokens, data.draw(st.sampled_from(TYPES)), seed)


@pytest.mark.parametrize("dtype", TYPES)
def test_large_enough_for_two_threads(level: None, threads: None, dtype: torch.dtype) -> None:
    for tokens in (1, 2, 3, 5, 8, 16):
        check(block_layout(700, 900, 64, 4, 0), tokens, dtype, 0)
        check(csr_layout(700, 900, 0.2, 0), tokens, dtype, 0)


def test_more_inputs_than_sixteen_bits_count(level: None) -> None:
    for inputs, index in ((1 << 16, torch.uint16), ((1 << 16) + 1, torch.int32)):
        mask = torch.rand(3, inputs, generator=torch.Generator().manual_seed(0)) < 0.001
        mask[:, -1] = True
        layout = layout_of_mask(mask)
        assert layout.indices().forward.short_index.dtype == index
        check(layout, 3, torch.float32, 0)


def test_rows_that_are_not_contiguous(level: None) -> None:
    blocks, single = block_layout(64, 96, 32, 2, 0), csr_layout(64, 96, 0.3, 0)
    weight = draw((64, 96), 0, torch.float32)
    for x in (draw((96, 5), 1, torch.float32).t(), draw((5, 200), 1, torch.float32)[:, 7:103],
              draw((1, 96), 1, torch.float32).expand(5, 96)):  # fmt: skip
        assert near(block_product(x, blocks.from_dense(weight), blocks, turned=False), x, (weight * blocks.mask()).t())
        assert near(csr_product(x, single.from_dense(weight), single, turned=False), x, (weight * single.mask()).t())


def test_layers_take_it_for_few_tokens(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def noting(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noted(x: Tensor, *rest: Any, **named: Any) -> Tensor:
            taken.append(len(x))
            return product(x, *rest, **named)

        return noted

    monkeypatch.setattr(few_tokens, "block_product", noting(block_product))
    monkeypatch.setattr(few_tokens, "csr_product", noting(csr_product))
    blocks, single = block_layout(64, 96, 32, 2, 0), csr_layout(64, 96, 0.3, 0)
    weight = draw((64, 96), 0, torch.float32)
    for tokens in (FEW, FEW + 1):
        x = draw((tokens, 96), 1, torch.float32)
        block_linear(x, blocks.from_dense(weight), blocks)
        block_linear(draw((tokens, 64), 1, torch.float32), blocks.from_dense(weight), blocks, turned=True)
        csr_linear(x, single.from_dense(weight), single)
    assert taken == [FEW] * 3
