"""Memory of layers of which only the active units exist (``sparsity.backend: block``), where that of masks differs."""

from __future__ import annotations

import math

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import Shapes
from nt_pretrain.sparsity.budget import LayerBudget

LISTS = 16
"""Bytes of what products read about an active unit: its place and its slot, by output and by input."""


def active_budgets(config: Config, budgets: dict[str, LayerBudget]) -> dict[str, LayerBudget]:
    """Of ``budgets`` those of layers of which only the active units exist."""
    sparsity = config.sparsity
    if sparsity.backend == "masked":
        return {}
    # Layers without inactive single weights stay dense.
    return {name: x for name, x in budgets.items() if sparsity.unit > 1 or x.active < x.units}


def stored_elements(shapes: Shapes, active: dict[str, LayerBudget]) -> dict[str, int]:
    """Elements of every parameter of ``shapes``, of which ``active`` keep the active ones only."""
    return {
        name: active[name].active * active[name].unit ** 2 if name in active else math.prod(shape)
        for name, shape in shapes.items()
    }


def topology_bytes(budget: LayerBudget, tensor: int, shards: int) -> tuple[int, int]:
    """Bytes of a layer's topology on one rank: all, and of these what a checkpoint keeps.

    Args:
        tensor: ranks that share its products.
        shards: ranks that hold parts of what one rank multiplies, and know one another's places.
    """
    ranks = tensor * shards
    if budget.unit > 1:
        kept = math.ceil((4 * budget.active + budget.units) / ranks)
        return kept + (LISTS + 8) * budget.active // tensor, kept
    explored = math.ceil(budget.shape[0] / ranks) * -(-budget.shape[1] // 8)
    return (8 + LISTS) * budget.active + explored, math.ceil(8 * budget.active / ranks) + explored


def growth_bytes(config: Config, budgets: list[LayerBudget], *, ranks: int, accumulation: int) -> tuple[int, int]:
    """Bytes of the dense gradients of an update step: while micro-batches accumulate, and of one layer at a time.

    Of one layer the product, over several ranks its sum in fp32 (fp64 where it shall be exact) too, and of single
    weights their codes and flags.
    """
    if config.sparsity.grow == "random" or not budgets:
        return 0, 0
    exact = config.parallel.deterministic_reduce or config.train.precision == "fp64"
    wide = 8 if exact else 4
    dense = [x.units * x.unit**2 for x in budgets]
    each = (4 if exact else 2) + (2 * wide if ranks > 1 else 0) + (6 if config.sparsity.unit == 1 else 0)
    return wide * sum(dense) if accumulation > 1 else 0, each * max(dense)
