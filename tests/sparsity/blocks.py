"""Layers of blocks and the dense layers they stand for, for the tests of the block backend."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer

NAME = "heads.1.blocks.0.ffn.up.weight"


def budget_of(rows: int, columns: int, fan: int, *, balance: str = "row", unit: int = 2) -> BlockBudget:
    """Units of 2 exist in tests only: nothing depends on the size, and small blocks test fast."""
    lines = rows if balance == "row" else columns
    return BlockBudget((rows * unit, columns * unit), unit, balance, fan, lines * fan * unit**2)


@st.composite
def budgets(draw, most: int = 7) -> BlockBudget:
    rows, columns = draw(st.integers(1, most)), draw(st.integers(1, most))
    balance = draw(st.sampled_from(["row", "col"]))
    fan = draw(st.integers(1, columns if balance == "row" else rows))
    return budget_of(rows, columns, fan, balance=balance)


def whole(budget: BlockBudget, seed: int = 0) -> BlockLayer:
    return draw_layer(NAME, budget, torch.arange(budget.lines), seed=seed)


def divided(lines: int, parts: int) -> list[Tensor]:
    """Which lines each of ``parts`` ranks holds; some hold none when there are few."""
    return list(torch.arange(lines).tensor_split(parts))


def dense_of(layer: BlockLayer, values: Tensor) -> Tensor:
    """The dense matrix of a whole layer, block by block."""
    budget, b = layer.budget, layer.budget.unit
    dense = values.new_zeros(budget.shape)
    for line, slots in enumerate(layer.ids().tolist()):
        for slot, number in enumerate(slots):
            row, column = divmod(number, budget.columns)
            block = values[line, slot] if budget.balance == "row" else values[line, slot].T
            dense[row * b : (row + 1) * b, column * b : (column + 1) * b] = block
    return dense
