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
from nt_pretrain.sparsity.scores import magnitude_codes
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
    """Weights of the rows held here that may grow: their numbers [n] int64 and codes [n] int32
    (:mod:`nt_pretrain.sparsity.scores`), and their slots, int64, -1 for those that are not active now.
    """

    ids: Tensor
    codes: Tensor
    slots: Tensor


def candidates(layer: CsrLayer, gradient: Tensor, choice: Choice) -> Candidates:
    """What may grow of the rows held here, by the magnitude of their dense mean gradient [rows, inputs].

    That are the inactive weights with the largest gradients, as many as the layer grows, and the active ones, since
    those that will be dropped may win their places back. Where equal gradients compete, tie breakers of the update
    decide here as they do over all ranks.

    Raises:
        ValueError: a gradient of other rows.
    """
    if tuple(gradient.shape) != (len(layer.rows), layer.inputs):
        raise ValueError(
            f"{layer.name}: rows of the dense gradient are {list(gradient.shape)}, [{len(layer.rows)}, {layer.inputs}] "
            "expected"
        )
    drops = choice.drops(layer.budget)
    slots = layer.own_slots()
    grid = layer.grid(layer.ids[slots])
    codes = magnitude_codes(gradient, ~grid.active)
    positions = best(grid, codes, choice.ties(layer, "grow tie"), drops - choice.by_chance(drops))
    found = Candidates(grid.unit_index(positions), codes[positions], torch.full_like(positions, -1))
    if choice.sparsity.just_dropped == "exclude":
        return found
    ids = layer.ids[slots]
    own = gradient.reshape(-1)[ids - layer.rows.start * layer.inputs]
    return Candidates(
        torch.cat([found.ids, ids]),
        torch.cat([found.codes, magnitude_codes(own, torch.ones_like(own, dtype=torch.bool))]),
        torch.cat([found.slots, slots]),
    )


def best(grid: SparseLayer, codes: Tensor, ties: int, most: int) -> Tensor:
    """Positions (int64) of the ``most`` largest of ``codes``, or of all candidates if there are fewer."""
    wanted = min(most, int(torch.count_nonzero(codes)))
    pool = Pool(grid.name, codes, lambda positions: grid.tie_breaker(positions, ties), wanted)
    return select_largest([pool], None)[0].nonzero().view(-1)


def pool_of(name: str, ids: Tensor, codes: Tensor, ties: int, wanted: int) -> Pool:
    """The candidates ``ids`` (numbers of weights) of one layer with their codes."""
    return Pool(name, codes, lambda positions: distinct32(ties, ids[positions]), wanted)
