"""Memory of layers of which only the active weights exist, each by itself, where it is not that of masks."""

from __future__ import annotations

import math

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.config.schema import Config
from nt_pretrain.sparsity.budget import LayerBudget

ID, LISTS = 8, 16
"""Bytes of the number of an active weight; of its places and slots in the lists of products, by output and input."""


def single_topology_bytes(budget: LayerBudget, shards: int) -> int:
    """Of the topology of a layer on each of the ``shards`` ranks that FSDP2 divides it among."""
    return (ID + LISTS) * budget.active + _explored_bytes(budget, shards)


def single_saved_bytes(budget: LayerBudget, shards: int) -> int:
    """What a checkpoint has of these."""
    return math.ceil(ID * budget.active / shards) + _explored_bytes(budget, shards)


def single_growth_bytes(budgets: list[LayerBudget], config: Config, sizes: MeshSizes, *, accumulation: int) -> int:
    """Of the dense gradients of a step after which weights grow: of all layers while micro-batches accumulate, of one
    layer its product, its sum over several ranks, and codes and flags of its weights.
    """
    if config.sparsity.grow == "random" or not budgets:
        return 0
    exact = config.parallel.deterministic_reduce or config.train.precision == "fp64"
    wide = 8 if exact else 4
    several = sizes.replicate * sizes.shard * sizes.head > 1
    one = (4 if exact else 2) + (2 * wide if several else 0) + 6
    waiting = wide * sum(budget.units for budget in budgets) if accumulation > 1 else 0
    return waiting + one * max(budget.units for budget in budgets)


def _explored_bytes(budget: LayerBudget, shards: int) -> int:
    """A bit for each weight of the rows held here."""
    return math.ceil(budget.shape[0] / shards) * -(-budget.shape[1] // 8)
