"""Which units of a sparse layer are active: the state that a topology update changes and a checkpoint keeps.

A layer's matrix is cut into units: single weights, or b x b blocks. For single weights a rank holds one byte for each
weight of its shard; for blocks every rank holds the whole table, 1 / b**2 of the weights. Nothing here talks to other
ranks; :mod:`nt_pretrain.sparsity.update` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.counter_random import CHUNK, bits31, distinct32, key_of
from nt_pretrain.sparsity.budget import LayerBudget


@dataclass(frozen=True)
class Held:
    """The part of a matrix [rows, columns] that this rank holds, as global row and column numbers (int64,
    ascending).
    """

    rows: Tensor
    columns: Tensor
    total_columns: int

    @property
    def is_contiguous(self) -> bool:
        """Whether the part is one run of flat indices: whole rows, adjacent."""
        whole = self.columns.numel() == self.total_columns
        return whole and (self.rows.numel() == 0 or int(self.rows[-1] - self.rows[0]) + 1 == self.rows.numel())

    def flat_index(self, positions: Tensor) -> Tensor:
        """Global flat element numbers (int64) of local flat ``positions``."""
        width = self.columns.numel()
        if self.is_contiguous:
            return positions + (int(self.rows[0]) * width if self.rows.numel() else 0)
        return self.rows[positions // width] * self.total_columns + self.columns[positions % width]


@dataclass
class SparseLayer:
    """The topology of one layer.

    ``active`` and ``explored`` (ever active) are bool and flat: [held weights] for unit 1, [all blocks] otherwise.
    ``stripped`` likewise are those that may never be active again; None where the layer is not stripped.
    """

    name: str
    budget: LayerBudget
    held: Held
    active: Tensor
    explored: Tensor
    stripped: Tensor | None = None

    @property
    def unit(self) -> int:
        return self.budget.unit

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds the state of all units (blocks), so that counts need no reduction."""
        return self.unit > 1

    @property
    def block_columns(self) -> int:
        return self.held.total_columns // self.unit

    @property
    def block_column_of(self) -> Tensor:
        """int64: the block column of each column held. A convolution's columns are (channel, place in the kernel), its
        blocks are of channels at one place, one place after another.
        """
        places = math.prod(self.budget.shape[2:])
        if places == 1:
            return self.held.columns // self.unit
        channels = self.held.columns // places
        return self.held.columns % places * (self.block_columns // places) + channels // self.unit

    def unit_index(self, positions: Tensor) -> Tensor:
        """Global unit numbers (int64) of local flat unit ``positions``."""
        return positions if self.is_replicated else self.held.flat_index(positions)

    def elements(self, units: Tensor) -> Tensor:
        """The per-unit flags ``units`` spread over the held weights: flat bool [held weights]."""
        if self.unit == 1:
            return units
        table = units.view(-1, self.block_columns)
        return table[self.held.rows // self.unit][:, self.block_column_of].reshape(-1)

    def random_bits(self, *key: object) -> Tensor:
        """A random number in [0, 2**31 - 1) (int32) for each unit held, a function of ``key``, the layer and the unit's
        global number.
        """
        draw_key = key_of(*key, self.name)
        # The largest of 31 bits leaves no room for the one that codes add (nt_pretrain.sparsity.scores).
        return self.by_chunk(lambda index: bits31(draw_key, index).clamp_(max=(1 << 31) - 2), torch.int32)

    def tie_breaker(self, positions: Tensor, key: int) -> Tensor:
        """Distinct numbers below 2**32 (int64) for local unit ``positions``: the order in which equal scores are
        taken.
        """
        return distinct32(key, self.unit_index(positions))

    def by_chunk(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """``function(global unit numbers)`` for all units held, computed a cache-sized chunk at a time."""
        out = torch.empty(self.active.numel(), dtype=dtype, device=self.active.device)
        for start in range(0, out.numel(), CHUNK):
            stop = min(start + CHUNK, out.numel())
            positions = torch.arange(start, stop, device=out.device)
            out[start:stop] = function(self.unit_index(positions))
        return out


@dataclass(frozen=True)
class LayerChange:
    """What an update did to one layer, counted over all ranks, in units."""

    active: int
    dropped: int
    grown: int
    explored: int
    units: int


def empty_layer(name: str, budget: LayerBudget, held: Held, *, is_strippable: bool = False) -> SparseLayer:
    """A layer with nothing active; the first topology is drawn by :func:`nt_pretrain.sparsity.update.draw`."""
    units = budget.units if budget.unit > 1 else held.rows.numel() * held.columns.numel()
    device = held.rows.device
    active = torch.zeros(units, dtype=torch.bool, device=device)
    return SparseLayer(name, budget, held, active, active.clone(), active.clone() if is_strippable else None)


def mask_(tensor: Tensor, active: Tensor) -> None:
    """Zero ``tensor`` in place where the flat bool ``active`` is False."""
    flat = tensor.view(-1)
    if tensor.device.type == "cpu":
        # In chunks the bool operand is converted inside the cache: measured 0.85 instead of 2.4 ns a weight.
        for start in range(0, flat.numel(), CHUNK):
            flat[start : start + CHUNK].mul_(active[start : start + CHUNK])
    else:
        flat.mul_(active)


def digest(layer: SparseLayer) -> int:
    """Sum over the active units held of a product of a row number and a column number; int64, wrapping.

    The sum over ranks (mod 2**64) identifies the topology whatever the sharding: factors are random, fixed by row and
    column alone. Columns get 20-bit factors so that fp64 matrix products add them exactly (2**33 columns at most).
    """
    if layer.is_replicated:
        rows = torch.arange(layer.active.numel() // layer.block_columns, device=layer.active.device)
        columns = torch.arange(layer.block_columns, device=layer.active.device)
    else:
        rows, columns = layer.held.rows, layer.held.columns
    if rows.numel() == 0 or columns.numel() == 0:
        return 0
    row_factor, column_factor = digest_factors(layer.name, rows, columns)
    table = layer.active.view(rows.numel(), columns.numel())
    per_row = torch.empty(rows.numel(), dtype=torch.int64, device=rows.device)
    step = max(1, CHUNK // columns.numel())
    for start in range(0, rows.numel(), step):
        part = table[start : start + step].to(torch.float64)
        per_row[start : start + step] = (part @ column_factor).to(torch.int64)
    return int((per_row * row_factor).sum())


def digest_factors(name: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What a digest multiplies for an active unit: the factors of its row (int64) and of its column (fp64, whole)."""
    column_factor = (distinct32(key_of("digest column"), columns) >> 12).to(torch.float64) + 1
    return distinct32(key_of("digest row", name), rows) * 0x9E3779B1 + 1, column_factor
