"""Layouts to and from dense matrices, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.sparsity.kernels.layout import BlockLayout, CsrLayout, LayoutError, layout_of_mask, layout_of_table
from tests.sparsity.kernels.reference import draw


def int32(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_blocks_to_dense_and_back(data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    block, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 2**31))
    rows, columns = -(-outputs // block), -(-inputs // block)
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    fan_in = data.draw(st.integers(1, columns))
    table = torch.zeros(rows, columns, dtype=torch.bool).scatter_(1, scores.topk(fan_in).indices, True)
    layout = layout_of_table(table, outputs, inputs, block)
    weight = draw((outputs, inputs), seed, torch.float32)
    assert torch.equal(layout.table(), table)
    values = layout.from_dense(weight)
    assert values.shape == layout.shape
    assert torch.equal(layout.to_dense(values), weight * layout.mask())
    for row in range(rows):
        for slot, column in enumerate(layout.columns[row].tolist()):
            part = weight[row * block : (row + 1) * block, column * block : (column + 1) * block]
            assert torch.equal(values[row, slot, : part.shape[0], : part.shape[1]], part)
    assert values.count_nonzero() <= layout.mask().sum(), "the padding holds zeros"


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 20), inputs=st.integers(1, 20), density=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_single_weights_to_dense_and_back(outputs: int, inputs: int, density: float, seed: int) -> None:
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < density
    layout = layout_of_mask(mask)
    weight = draw((outputs, inputs), seed, torch.float32)
    assert torch.equal(layout.mask(), mask)
    assert torch.equal(layout.to_dense(layout.from_dense(weight)), weight * mask)


def test_the_transposed_index_follows_the_columns() -> None:
    layout = BlockLayout(32, 64, 16, int32([0, 2], [3, 2]))
    lists = layout.indices().backward
    assert lists.pointers.tolist() == [0, 1, 1, 3, 4]
    assert lists.index.tolist() == [0, 0, 1, 1] and lists.slots.tolist() == [0, 1, 3, 2]
    assert layout.indices() is layout.indices()
    layout.columns[0, 0] = 1
    assert layout.indices().backward.pointers.tolist() == [0, 0, 1, 3, 4]
    layout.columns[0, 0] = 2
    with pytest.raises(LayoutError, match="block row 0 names block column 2 2 times"):
        layout.indices()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((32, 64, 16, int32([0, 4], [1, 2])), "columns holds 4, but 64 inputs .* 0 to 3"),
        ((32, 64, 16, int32([0, -1], [1, 2])), "columns holds -1"),
        ((32, 64, 16, int32([1, 1], [1, 2])), "block row 0 names block column 1 2 times"),
        ((33, 64, 16, int32([0, 1], [1, 2])), "columns has 2 rows, but 33 outputs in blocks of 16 are 3 block rows"),
        ((32, 16, 16, int32([0, 0], [0, 0])), "fan-in of 2 blocks: 16 inputs .* 1 to 1"),
        ((32, 64, 16, torch.zeros(2, 0, dtype=torch.int32)), "fan-in of 0 blocks"),
        ((32, 64, 16, torch.zeros(2, 1)), r"int32 .*not float32 \[2, 1\] on cpu"),
        ((32, 64, 0, int32([0], [1])), "blocks of 0 has no weight"),
    ],
)
def test_wrong_blocks_are_named(arguments: tuple[int, int, int, torch.Tensor], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        BlockLayout(*arguments)


def test_wrong_tables_are_named() -> None:
    with pytest.raises(LayoutError, match="block row 1 has 0 active blocks and block row 0 has 2"):
        layout_of_table(torch.tensor([[True, True], [False, False]]), 32, 32, 16)
    with pytest.raises(LayoutError, match=r"bool \[2, 2\], not bool \[2, 3\]"):
        layout_of_table(torch.ones(2, 3, dtype=torch.bool), 32, 32, 16)
    with pytest.raises(LayoutError, match=r"a weight of shape \[3, 3\]"):
        layout_of_table(torch.ones(2, 2, dtype=torch.bool), 32, 32, 16).from_dense(torch.zeros(3, 3))


@pytest.mark.parametrize(
    "pointers, columns, words",
    [
        ([0, 1], [0, 1], "pointers has 2 entries for a layer of 2 × 4: .* 3"),
        ([0, 2, 1], [0], "have 1 descents"),
        ([0, 1, 3], [0, 1], "number of columns, 2; they begin with 0, end with 3"),
        ([0, 1, 2], [0, 4], "columns holds 0 to 4"),
        ([0, 2, 2], [1, 1], "row 0: column 1 comes after column 1"),
        ([0, 0, 2], [3, 1], "row 1: column 1 comes after column 3"),
    ],
)
def test_wrong_single_weights_are_named(pointers: list[int], columns: list[int], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        CsrLayout(2, 4, int32(*pointers), int32(*columns))
