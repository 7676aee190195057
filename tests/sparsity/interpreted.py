"""The Triton kernels against dense products: in triton's interpreter, in a process that test_kernels_triton.py starts.

Triton decides at its import whether to interpret, and whatever else is tested in a process may have imported it.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sparsity.blocks import budget_of, dense_of, whole


@pytest.fixture(scope="session")
def kernels():
    from nt_pretrain.sparsity import kernels_triton

    assert kernels_triton.INTERPRETED
    return kernels_triton


def dense_weights(tables, values, unit: int, across: int) -> torch.Tensor:
    """[heads, N, K] of the blocks ``values`` [heads * rows, fan, b, b]."""
    dense = torch.zeros(len(tables), len(tables[0]) * unit, across * unit, dtype=torch.float64)
    blocks = iter(values.double().flatten(0, 1))
    for head, table in enumerate(tables):
        for row, columns in enumerate(table.tolist()):
            for column in columns:
                dense[head, row * unit : (row + 1) * unit, column * unit : (column + 1) * unit] = next(blocks)
    return dense


def ensure_right(kernels, *, unit, heads, rows, across, fan, tokens, shared, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    tables = [
        torch.stack([torch.randperm(across, generator=generator)[:fan] for _ in range(rows)]) for _ in range(heads)
    ]
    inputs = 1 if shared else heads
    joined = kernels.joined_columns(tables, across, shared_input=shared).to(device)
    plan = kernels.plan_of(joined, unit=unit, heads=heads, block_columns=across, inputs=inputs)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    values = draw(heads * rows, fan, unit, unit)
    x, dy = draw(inputs, across * unit, tokens).transpose(1, 2), draw(heads, tokens, rows * unit)  # x has odd strides
    weights, wide_x, wide_dy = dense_weights(tables, values, unit, across), x.double(), dy.double()
    x, dy, values = x.to(device), dy.to(device), values.to(device)
    found = kernels.bs_fwd(x, values, plan), kernels.bs_dx(dy, values, plan), kernels.bs_dw(dy, x, plan)
    dx = wide_dy @ weights
    dense_dw = (wide_dy.transpose(1, 2) @ wide_x).expand(heads, -1, -1)
    blocks = dense_dw.reshape(heads, rows, unit, across, unit).transpose(2, 3)
    dw = torch.stack([blocks[h, r, table[r]] for h, table in enumerate(tables) for r in range(rows)])
    wanted = wide_x @ weights.transpose(1, 2), dx.sum(0, keepdim=True) if shared else dx, dw
    close = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for name, have, want in zip(("Y", "dX", "dW"), found, wanted, strict=True):
        assert have.shape == want.shape and have.dtype == (torch.float32 if name == "dW" else dtype), name
        if want.numel():
            off, largest = float((have.cpu().double() - want).abs().max()), float(want.abs().max())
            assert off <= close * largest, f"{name}: off by {off:.1e}, the largest is {largest:.1e}"
    again = kernels.bs_fwd(x, values, plan), kernels.bs_dx(dy, values, plan), kernels.bs_dw(dy, x, plan)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True)), "not the same bits twice"


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_several_heads_in_one_launch(kernels, data):
    across = data.draw(st.integers(1, 3))
    ensure_right(
        kernels, unit=16, heads=data.draw(st.integers(1, 3)), rows=data.draw(st.integers(1, 3)), across=across,
        fan=data.draw(st.integers(1, across)), tokens=data.draw(st.sampled_from([0, 1, 15, 16, 17, 33])),
        shared=data.draw(st.booleans()), dtype=data.draw(st.sampled_from([torch.float32, torch.float16])),
    )  # fmt: skip


@pytest.mark.parametrize("unit", [32, 64, 128])
def test_all_sizes_of_blocks(kernels, unit):
    ensure_right(kernels, unit=unit, heads=1, rows=2, across=2, fan=1, tokens=9, shared=False)


def test_tokens_of_dw_are_split_over_programs(kernels):
    """One block and 300 tokens: three programs add up their stretches, the last one a short one."""
    ensure_right(kernels, unit=16, heads=1, rows=1, across=1, fan=1, tokens=300, shared=False)


def test_dw_of_blocks_that_are_not_active(kernels):
    """What scores of candidates to grow are made of."""
    plan = kernels.plan_of(torch.tensor([[0], [1]]), unit=16, heads=1, block_columns=2, inputs=1)
    x, dy = torch.randn(1, 20, 32), torch.randn(1, 20, 32)
    found = kernels.bs_dw_at(dy, x, plan, torch.tensor([1, 0]).int(), torch.tensor([0, 1]).int())
    dense = dy[0].T @ x[0]
    torch.testing.assert_close(found, torch.stack([dense[16:, :16], dense[:16, 16:]]), rtol=1e-5, atol=1e-5)


def test_a_layer_balanced_by_column_is_the_transpose(kernels):
    """Y = X Wᵀ is dX of the row-balanced layer that keeps it, and the other way round: no kernels of its own."""
    budget = budget_of(3, 4, 2, balance="col", unit=16)
    layer = whole(budget)
    values = torch.randn(*layer.columns.shape, 16, 16)
    weight, x, dy = dense_of(layer, values), torch.randn(1, 5, 64), torch.randn(1, 5, 48)
    plan = kernels.plan_of(layer.columns, unit=16, heads=1, block_columns=3, inputs=1)
    assert torch.equal(plan.starts, layer.starts) and torch.equal(plan.positions, layer.positions)
    torch.testing.assert_close(kernels.bs_dx(x, values, plan), x @ weight.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(kernels.bs_fwd(dy, values, plan), dy @ weight, rtol=1e-5, atol=1e-4)


def test_bad_inputs_say_what_is_wrong(kernels):
    columns = torch.tensor([[0, 1], [1, 2]])
    plan = kernels.plan_of(columns, unit=16, heads=1, block_columns=3, inputs=1)
    x, values, dy = torch.ones(1, 4, 48), torch.ones(2, 2, 16, 16), torch.ones(1, 5, 32)
    for call, words in (
        (lambda: kernels.bs_fwd(x[..., :32], values, plan), r"x has shape \[1, 4, 32\], \[1, tokens, 48\] expected"),
        (lambda: kernels.bs_fwd(x, values[:1], plan), r"values has shape \[1, 2, 16, 16\], \[2, 2, 16, 16\] expected"),
        (lambda: kernels.bs_fwd(x.half(), values, plan), r"values float32, x float16: .* one dtype"),
        (lambda: kernels.bs_fwd(x.double(), values.double(), plan), r"float64: .* float32, bfloat16 or float16"),
        (lambda: kernels.bs_fwd(x.bfloat16(), values.bfloat16(), plan), "interpreter multiplies bfloat16 wrongly"),
        (lambda: kernels.bs_dw(dy, x, plan), "x has 4 tokens, dy 5"),
        (lambda: kernels.bs_fwd(x.to("meta"), values, plan), "x is on meta and the table of blocks on cpu"),
        (lambda: kernels.plan_of(columns, unit=8, heads=1, block_columns=3, inputs=1), "blocks of 8 x 8: .* 16, 32"),
        (lambda: kernels.plan_of(columns, unit=16, heads=1, block_columns=2, inputs=1), "columns go from 0 to 2; 1 in"),
        (lambda: kernels.plan_of(columns, unit=16, heads=3, block_columns=3, inputs=1), "not that of 3 heads"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
