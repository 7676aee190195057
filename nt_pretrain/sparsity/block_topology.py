"""Which blocks of a layer exist, when only those do: a table of block columns, with as many in every line.

A layer balanced by row keeps ``columns[line, slot]``, the block columns of its block rows, and the parameter
``values[line, slot, b, b]`` ([outputs, inputs] inside a block). A layer balanced by column is kept as the row-balanced
layer of its transpose: lines are its block columns, ``columns`` holds block rows, and the inside of a block is [inputs,
outputs]. So there is one layout, and kernels need to know one only.

A slot keeps its block until that is dropped, so an update moves no values. What a block is called elsewhere is its
global number, row * block columns + column of the layer's weight, whatever the balance and the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nt_pretrain.counter_random import distinct32, key_of
from nt_pretrain.sparsity.block_budget import Balance, BlockBudget
from nt_pretrain.sparsity.block_select import largest_in_lines
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.scores import code
from nt_pretrain.sparsity.topology import Held, SparseLayer, digest


@dataclass
class BlockLayer:
    """The topology of one layer of blocks, of the lines that this rank holds.

    Attributes:
        lines: [L] int64, global numbers of the held lines, ascending.
        columns: [L, fan] int32, the other coordinate of each active block; those of a line are distinct, in any order.
        explored: [L, across] bool, blocks that were ever active.
        starts: [across + 1] int32 and
        positions: [L * fan] int32: the transposed index. Blocks at column c have the flat positions (line * fan + slot)
            ``positions[starts[c] : starts[c + 1]]``, ascending. Derived from ``columns`` by :meth:`refresh`.
    """

    name: str
    budget: BlockBudget
    lines: Tensor
    columns: Tensor
    explored: Tensor
    starts: Tensor = field(init=False)
    positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Derive the transposed index again; after every change of ``columns``."""
        flat = self.columns.reshape(-1).to(torch.int64)
        # Stable: the blocks of a column are added up in an order that depends on nothing but the table.
        self.positions = torch.argsort(flat, stable=True).to(torch.int32)
        counts = torch.bincount(flat, minlength=self.budget.across)
        self.starts = torch.zeros(self.budget.across + 1, dtype=torch.int32, device=flat.device)
        self.starts[1:] = counts.cumsum(0)

    @property
    def held(self) -> int:
        """How many lines are held here."""
        return self.lines.numel()

    def ids(self) -> Tensor:
        """[L, fan] int64: global number of the block in each slot."""
        columns, lines = self.columns.to(torch.int64), self.lines[:, None]
        if self.budget.balance == "row":
            return lines * self.budget.columns + columns
        return columns * self.budget.columns + lines

    def active(self) -> Tensor:
        """[L, across] bool: which blocks of each line are active."""
        flags = torch.zeros(self.lines.numel(), self.budget.across, dtype=torch.bool, device=self.columns.device)
        return flags.scatter_(1, self.columns.to(torch.int64), True)

    def to_table(self) -> Tensor:
        """bool, the weight's block rows × block columns, of the held lines: [L, columns], or [rows, L] for ``col``."""
        return oriented(self.active(), self.budget.balance).contiguous()

    def grid(self) -> SparseLayer:
        """The held part of the table as a layer of single units, each of which is a block.

        It has the unit numbers, random numbers and tie breakers of the masked backend's layer of blocks; its flat
        tensors are laid out as ``to_table().view(-1)``, see :func:`by_line`.
        """
        budget, device = self.budget, self.lines.device
        rows, columns = torch.arange(budget.rows, device=device), torch.arange(budget.columns, device=device)
        held = (self.lines, columns) if budget.balance == "row" else (rows, self.lines)
        units = LayerBudget((budget.rows, budget.columns), 1, budget.units, budget.active)
        explored = oriented(self.explored, budget.balance).reshape(-1)
        return SparseLayer(
            self.name, units, Held(*held, total_columns=budget.columns), self.to_table().view(-1), explored
        )

    def digest(self) -> int:
        """The sum over ranks (mod 2**64) is the masked backend's digest of the same table."""
        return digest(self.grid())


def oriented(table: Tensor, balance: Balance) -> Tensor:
    """A table [lines, across, ...] as block rows × block columns, or the other way round: it is its own inverse."""
    return table if balance == "row" else table.transpose(0, 1)


def by_line(layer: BlockLayer, flat: Tensor) -> Tensor:
    """A flat tensor of ``layer.grid()`` as [L, across]."""
    held, across = layer.lines.numel(), layer.budget.across
    return flat.view(held, across) if layer.budget.balance == "row" else flat.view(across, held).t()


def ties_by_line(layer: BlockLayer, *key: object) -> Tensor:
    """[L, across] int64 tie breakers of all blocks of the held lines, as the masked backend has them under ``key``."""
    grid = layer.grid()
    tie_key = key_of(*key, layer.name)
    return by_line(layer, grid.by_chunk(lambda index: distinct32(tie_key, index), torch.int64))


def draw_layer(name: str, budget: BlockBudget, lines: Tensor, *, seed: int) -> BlockLayer:
    """The first topology: of each line ``budget.fan`` blocks, uniformly, a function of (seed, name, global number).

    Args:
        lines: [L] int64, the lines held here; any, ascending. A line's blocks do not depend on the others.
    """
    empty = torch.zeros(lines.numel(), 0, dtype=torch.int32, device=lines.device)
    explored = torch.zeros(lines.numel(), budget.across, dtype=torch.bool, device=lines.device)
    layer = BlockLayer(name, budget, lines, empty, explored)
    bits = by_line(layer, layer.grid().random_bits(seed, "first topology"))
    codes = code(bits, torch.ones_like(bits, dtype=torch.bool))
    wanted = torch.full_like(lines, budget.fan)
    chosen = largest_in_lines(name, codes, ties_by_line(layer, seed, "first topology tie"), wanted)
    return BlockLayer(name, budget, lines, _columns_of(chosen, budget.fan), chosen)


def layer_of_table(
    name: str, budget: BlockBudget, lines: Tensor, table: Tensor, explored: Tensor | None = None
) -> BlockLayer:
    """A layer from its table of active blocks; slots ascend by column.

    Args:
        table: bool as :meth:`BlockLayer.to_table` gives it, of the lines held here.
        explored: the same of blocks that were ever active; default ``table``.

    Raises:
        ValueError: the table has another shape; lines have not all ``budget.fan`` active blocks.
    """
    held = lines.numel()
    shape = (held, budget.across) if budget.balance == "row" else (budget.across, held)
    if tuple(table.shape) != shape:
        raise ValueError(f"{name}: a table of blocks {list(table.shape)} is given, {list(shape)} expected")
    active = oriented(table, budget.balance)
    ensure_constant(name, active, lines, budget)
    seen = active if explored is None else oriented(explored, budget.balance)
    return BlockLayer(name, budget, lines, _columns_of(active, budget.fan), seen.clone())


def ensure_constant(name: str, active: Tensor, lines: Tensor, budget: BlockBudget) -> None:
    """Raise unless every line of ``active`` [L, across] has ``budget.fan`` blocks.

    Raises:
        ValueError: it says how many lines have other numbers, which first, and the range.
    """
    counts = torch.count_nonzero(active, dim=1)
    wrong = torch.nonzero(counts != budget.fan).view(-1)
    if wrong.numel() == 0:
        return
    word = "row" if budget.balance == "row" else "column"
    first = int(wrong[0])
    raise ValueError(
        f"{name}: the block backend needs {budget.fan} active blocks in each block {word}, and {wrong.numel():,} of "
        f"{lines.numel():,} have others, from {int(counts.min())} to {int(counts.max())}; the first is block {word} "
        f"{int(lines[first])} with {int(counts[first])}. A table of the masked backend can be read as blocks only if "
        f"its block {word}s have as many active blocks each"
    )


def _columns_of(active: Tensor, fan: int) -> Tensor:
    """[L, fan] int32: positions of the True of each line, ascending."""
    return torch.nonzero(active)[:, 1].view(active.shape[0], fan).to(torch.int32)
