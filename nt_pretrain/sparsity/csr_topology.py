"""Which single weights of a layer exist, when only those do: the topology of the masked backend without its mask.

Slot s holds weight number ``ids[s]``, row * columns + column. A slot keeps its weight until that is dropped, and then
takes a grown one, so values, moments and their cut over ranks (equal runs of slots) never move. All ranks that compute
with the layer know all numbers. What a layer has beside, as large as its matrix, is divided by rows: one bit a weight
for those that were ever active, and, while an update lasts, the scores by which weights grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import CHUNK
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.topology import Held, SparseLayer, digest_factors


@dataclass
class CsrLayer:
    """The topology of one layer [outputs, inputs] of single weights.

    Attributes:
        ids: [active] int64, the number of the weight in each slot, distinct, in any order; the same on all ranks.
        rows: those of the matrix whose bits are kept and whose growth is scored here; other ranks have the others.
        explored: [rows, inputs / 8 rounded up] uint8, a bit for each weight that was ever active; the lowest bit of a
            byte is the first of its columns.
    """

    name: str
    budget: LayerBudget
    ids: Tensor
    rows: range
    explored: Tensor

    @property
    def inputs(self) -> int:
        return self.budget.shape[1]

    @property
    def is_full(self) -> bool:
        """Whether all weights are active, so that none can move."""
        return self.budget.active == self.budget.units

    @property
    def held(self) -> int:
        """How many rows are held here."""
        return len(self.rows)

    def own_slots(self) -> Tensor:
        """[n] int64, ascending: the slots whose weights lie in ``rows``."""
        return self.in_rows(self.ids).nonzero().view(-1)

    def in_rows(self, ids: Tensor) -> Tensor:
        """Which of the weights ``ids`` lie in ``rows``: bool, of their shape."""
        return (ids >= self.rows.start * self.inputs) & (ids < self.rows.stop * self.inputs)

    def grid(self, closed: Tensor) -> SparseLayer:
        """The part of the matrix in ``rows`` as the masked backend holds it, with the weights ``closed`` (numbers of
        any rows) active: its random numbers and tie breakers are those of that backend.

        Takes a byte for each weight of ``rows``.
        """
        device = self.ids.device
        rows = torch.arange(self.rows.start, self.rows.stop, device=device)
        flags = torch.zeros(len(self.rows) * self.inputs, dtype=torch.bool, device=device)
        flags[closed[self.in_rows(closed)] - self.rows.start * self.inputs] = True
        held = Held(rows, torch.arange(self.inputs, device=device), self.inputs)
        return SparseLayer(self.name, self.budget, held, flags, flags)

    def remember(self, ids: Tensor) -> None:
        """Set the bits of the weights ``ids`` (distinct numbers of any rows) that lie in ``rows``."""
        position = ids[self.in_rows(ids)] - self.rows.start * self.inputs
        row, column = position // self.inputs, position % self.inputs
        at, bit = row * self.explored.shape[1] + column // 8, (1 << column % 8).to(torch.uint8)
        flat = self.explored.view(-1)
        fresh = flat[at] & bit == 0
        # Of distinct weights whose bits are not set the sum is the union.
        flat.index_add_(0, at[fresh], bit[fresh])

    def explored_count(self) -> int:
        """Weights of ``rows`` that were ever active."""
        counts = torch.zeros(256, dtype=torch.int64, device=self.explored.device)
        for part in self.explored.view(-1).split(CHUNK):
            counts += torch.bincount(part, minlength=256)
        values = torch.arange(256, device=counts.device)
        ones = sum((values >> bit) & 1 for bit in range(8))
        return int((counts * ones).sum())

    def digest(self) -> int:
        """The masked backend's digest of the whole layer, summed over its ranks (int64, wrapping)."""
        total = torch.zeros((), dtype=torch.int64, device=self.ids.device)
        for part in self.ids.split(CHUNK):
            row_factor, column_factor = digest_factors(self.name, part // self.inputs, part % self.inputs)
            total += (row_factor * column_factor.to(torch.int64)).sum()
        return int(total)


def layer_of_ids(name: str, budget: LayerBudget, ids: Tensor, rows: range) -> CsrLayer:
    """A layer in which nothing but ``ids`` was ever active.

    Raises:
        ValueError: another number of weights than the budget has; a layer that is no matrix.
    """
    if len(budget.shape) != 2:
        raise ValueError(f"{name}: shape {list(budget.shape)} is no matrix, and only matrices have single-weight slots")
    if tuple(ids.shape) != (budget.active,):
        raise ValueError(f"{name}: numbers of weights are {list(ids.shape)}, the budget has {budget.active:,} weights")
    explored = torch.zeros(len(rows), -(-budget.shape[1] // 8), dtype=torch.uint8, device=ids.device)
    layer = CsrLayer(name, budget, ids, rows, explored)
    layer.remember(ids)
    return layer


def part(count: int, parts: int, number: int) -> range:
    """The part ``number`` of ``count`` rows or slots in runs of equal length, the last ones shorter or empty: as
    parameters are cut along their first dimension.
    """
    size = -(-count // parts)
    return range(min(number * size, count), min((number + 1) * size, count))


def ensure_possible(sparsity: SparsitySection) -> None:
    """Refuse settings that need what only the masked backend has.

    Raises:
        ValueError: blocks, growth by momentum, warm moments, a density schedule.
    """
    wrong = {
        f"unit: {sparsity.unit}": (sparsity.unit != 1, "slots hold single weights"),
        "grow: momentum": (
            sparsity.grow == "momentum",
            "weights that are not active have none; set gradient or random",
        ),
        "grown_moments: warm": (
            sparsity.grown_moments == "warm",
            "it needs moments of weights that are not active; set mean or zero",
        ),
        f"density_schedule: {sparsity.density_schedule}": (
            sparsity.density_schedule != "constant",
            "the number of weights is fixed with the shape of the parameters; set constant",
        ),
    }
    for setting, (is_set, why) in wrong.items():
        if is_set:
            raise ValueError(f"sparsity.{setting} is not possible with the block backend: {why}")
