"""Which single weights may grow, of the rows whose dense gradient a rank has, and how an update chooses among them.

Of the rows of a layer that it holds a rank keeps only weights that could be among the chosen of the whole layer, so the
dense gradient of one layer can go before that of the next one comes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import distinct32, key_of
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_topology import CsrLayer
from nt_pretrain.sparsity.scores import code, magnitude_codes
from nt_pretrain.sparsity.topology import SparseLayer


@dataclass(frozen=True)
class Choice:
    """How an update chooses: the settings, the share of active weights to drop, the key of every random choice."""

    sparsity: SparsitySection
    prune_rate: float
    seed: int
    step: int

    def drops(self, budget: LayerBudget) -> int:
        """How many weights a layer drops."""
        drop = math.ceil(self.prune_rate * budget.active)
        # Without candidates to regrow, only inactive weights are free.
        return min(drop, budget.units - budget.active) if self.sparsity.just_dropped == "exclude" else drop

    def by_chance(self, drops: int) -> int:
        """How many of ``drops`` grow at random."""
        return drops if self.sparsity.grow == "random" else math.floor(self.sparsity.grow_random_share * drops)

    def ties(self, layer: CsrLayer, what: str) -> int:
        """Key of the tie breakers of ``what``: those of the masked backend."""
        return key_of(self.seed, self.step, what, layer.name)


@dataclass(frozen=True)
class Candidates:
    """Weights of the rows held here that may grow.

    Attributes:
        ids: [n] int64, their numbers.
        slots: [n] int64, their slots; -1 for those that are not active now.
        gradients: [n], their mean gradients; zeros where growth is random and nobody asks for them.
        lots: [n] int32, codes (:mod:`nt_pretrain.sparsity.scores`) of what grows at random; zeros if nothing does.
    """

    ids: Tensor
    slots: Tensor
    gradients: Tensor
    lots: Tensor


def candidates(layer: CsrLayer, gradient: Tensor | None, choice: Choice) -> Candidates:
    """What may grow of the rows held here, by the magnitude of their dense mean gradient [rows, inputs], and at random.

    That are as many inactive weights with the largest gradients, and as many with the largest lots, as an update could
    take, and the active ones, since those that will be dropped may win their places back. Where equals compete, tie
    breakers of the update decide here as they do over all ranks.

    Args:
        gradient: None where ``sparsity.grow`` is random.

    Raises:
        ValueError: a gradient of other rows.
    """
    if gradient is not None and tuple(gradient.shape) != (len(layer.rows), layer.inputs):
        raise ValueError(
            f"{layer.name}: rows of the dense gradient are {list(gradient.shape)}, [{len(layer.rows)}, {layer.inputs}] "
            "expected"
        )
    drops = choice.drops(layer.budget)
    lucky = choice.by_chance(drops)
    slots = layer.own_slots()
    grid = layer.grid(layer.ids[slots])
    free, first = ~grid.active, layer.rows.start * layer.inputs
    flat = None if gradient is None else gradient.reshape(-1)
    picked = torch.zeros_like(free)
    if flat is not None:
        picked |= best(grid, magnitude_codes(flat, free), choice.ties(layer, "grow tie"), drops - lucky)
    bits = None
    if lucky:
        bits = grid.random_bits(choice.seed, choice.step, "grow")
        # Some of them may be taken for their gradients.
        picked |= best(grid, code(bits, free), choice.ties(layer, "grow random tie"), drops)
    positions, at = picked.nonzero().view(-1), torch.empty(0, dtype=torch.int64)
    if choice.sparsity.just_dropped != "exclude":
        at = slots
    positions = torch.cat([positions, layer.ids[at] - first])
    every = torch.ones_like(positions, dtype=torch.bool)
    return Candidates(
        positions + first,
        torch.cat([torch.full((len(positions) - len(at),), -1), at]),
        torch.zeros(len(positions)) if flat is None else flat[positions],
        torch.zeros(len(positions), dtype=torch.int32) if bits is None else code(bits[positions], every),
    )


def best(grid: SparseLayer, codes: Tensor, ties: int, most: int) -> Tensor:
    """The ``most`` largest of ``codes``, or all candidates if there are fewer: bool, of all weights of ``grid``."""
    wanted = min(most, int(torch.count_nonzero(codes)))
    pool = Pool(grid.name, codes, lambda positions: grid.tie_breaker(positions, ties), wanted)
    return select_largest([pool], None)[0]


def pool_of(name: str, ids: Tensor, codes: Tensor, ties: int, wanted: int) -> Pool:
    """The candidates ``ids`` (numbers of weights) of one layer with their codes."""
    return Pool(name, codes, lambda positions: distinct32(ties, ids[positions]), wanted)
