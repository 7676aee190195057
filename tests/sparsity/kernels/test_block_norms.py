"""Norms of all blocks of the dense gradient, taken piece by piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.sparsity.kernels.block_norms import block_norms
from nt_pretrain.sparsity.kernels.layout import BlockLayout, layout_of_table
from tests.sparsity.kernels.reference import draw


def full(outputs: int, inputs: int, block: int) -> BlockLayout:
    table = torch.ones(-(-outputs // block), -(-inputs // block), dtype=torch.bool)
    return layout_of_table(table, outputs, inputs, block)


@settings(max_examples=30, deadline=None)
@given(
    outputs=st.integers(1, 70), inputs=st.integers(1, 70), tokens=st.integers(0, 30), block=st.integers(1, 32),
    piece_bytes=st.sampled_from([1, 3000, 2**24]),
)  # fmt: skip
def test_norms_are_those_of_the_dense_gradient(
    outputs: int, inputs: int, tokens: int, block: int, piece_bytes: int
) -> None:
    layout = full(outputs, inputs, block)
    x, dy = draw((tokens, inputs), 0, torch.float32), draw((tokens, outputs), 1, torch.float32)
    dense = dy.bfloat16().double().t() @ x.bfloat16().double()
    expected = layout.from_dense(dense).flatten(2).norm(dim=2)
    found = block_norms(dy, x, layout, piece_bytes=piece_bytes)
    assert found.dtype == torch.float32
    # Elements are rounded to bfloat16, each by at most 2^-8 of itself or, where terms cancel, of a term's sum.
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-6)


def test_pieces_can_be_reduced() -> None:
    # Two ranks: each reduces its piece to the mean of both.
    layout = full(48, 32, 16)
    x, dy = draw((2, 10, 32), 0, torch.float32), draw((2, 10, 48), 1, torch.float32)
    dense = (dy.bfloat16().float().transpose(1, 2) @ x.bfloat16().float()).bfloat16()
    seen: list[int] = []

    def mean(piece: torch.Tensor) -> None:
        piece.add_(dense[1, sum(seen) : sum(seen) + len(piece)]).div_(2)
        seen.append(len(piece))

    found = block_norms(dy[0], x[0], layout, reduce=mean, piece_bytes=2 * 16 * 32 * 2)
    assert seen == [32, 16]
    expected = layout.from_dense(dense.double().mean(0)).flatten(2).norm(dim=2)
    torch.testing.assert_close(found.double(), expected, rtol=2**-6, atol=1e-6)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"dy is \[5, 47\] and x is \[5, 32\]"):
        block_norms(torch.zeros(5, 47), torch.zeros(5, 32), full(48, 32, 16))
