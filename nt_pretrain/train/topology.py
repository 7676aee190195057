"""The topologies of a run: drawn, updated and compared on every part of the mesh that holds some of them.

A layer is divided among the ranks of its part: the trunk among all ranks of one copy, a head among its group's. Parts
are updated one after the other by the same function; what is reported is of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.groups import part_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.block_budget import line_budgets
from nt_pretrain.sparsity.block_topology import BlockLayer
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_topology import CsrLayer
from nt_pretrain.sparsity.line_update import draw_lines, update_lines
from nt_pretrain.sparsity.topology import SparseLayer, digest
from nt_pretrain.sparsity.update import LayerChange, LayerTensors, draw, layer_digests, update


class TopologyError(Exception):
    """Ranks that hold the same topology disagree about it."""


Layer = TypeVar("Layer", SparseLayer, BlockLayer)
Flat = SparseLayer | CsrLayer


def parts(layers: list[Layer], ranks: Ranks) -> list[tuple[list[Layer], dist.ProcessGroup]]:
    """The layers of the trunk and those of this rank's heads, each with the ranks they are divided among."""
    trunk = [layer for layer in layers if part_of(layer.name) == "trunk"]
    heads = [layer for layer in layers if part_of(layer.name) != "trunk"]
    return [(trunk, ranks.trunk_group), (heads, ranks.heads_group)]


def draw_topology(layers: list[SparseLayer], config: Config, ranks: Ranks) -> None:
    """Draw the first topology of all layers held here. Collective."""
    if config.sparsity.balance == "line" and layers:
        draw_lines(layers, line_budgets(shapes_of(config.model), config.sparsity), seed=config.run.seed)
        return
    for some, group in parts(layers, ranks):
        draw(some, seed=config.run.seed, group=group)


def update_topology(
    layers: list[SparseLayer],
    tensors: dict[str, LayerTensors],
    config: Config,
    ranks: Ranks,
    *,
    targets: dict[str, LayerBudget],
    prune_rate: float,
    step: int,
) -> dict[str, LayerChange]:
    """Update all layers held here; returns what changed in all layers of the model, also those held elsewhere.

    Collective. Arguments as those of :func:`nt_pretrain.sparsity.update.update`.
    """
    changes: dict[str, LayerChange] = {}
    by_line = config.sparsity.balance == "line"
    budgets = line_budgets(shapes_of(config.model), config.sparsity) if by_line else {}
    for some, group in parts(layers, ranks):
        if by_line:
            changes |= update_lines(
                some, tensors, sparsity=config.sparsity, budgets=budgets, prune_rate=prune_rate, seed=config.run.seed,
                step=step, group=group,
            )  # fmt: skip
            continue
        changes |= update(
            some, tensors, sparsity=config.sparsity, targets=targets, prune_rate=prune_rate, seed=config.run.seed,
            step=step, group=group,
        )  # fmt: skip
    return of_all_heads(changes, ranks, list(targets))


def topology_digest(
    layers: Sequence[SparseLayer | BlockLayer | CsrLayer], ranks: Ranks, budgets: dict[str, LayerBudget]
) -> str:
    """16 hexadecimal digits that identify the topologies of all layers of ``budgets``, whatever the mesh.

    Collective.

    Raises:
        TopologyError: on all ranks, if ranks that hold the same layer differ about it (replicas; for blocks all ranks
            of its part); it names layer and ranks.
    """
    mine: dict[str, int] = {}
    # Blocks that a rank holds lines of are divided as single weights are.
    flat: list[Flat] = [layer.grid() if isinstance(layer, BlockLayer) else layer for layer in layers]
    for some, group in parts([layer for layer in flat if isinstance(layer, SparseLayer)], ranks):
        mine |= layer_digests(some, group)
    # All ranks know all slots of single weights.
    mine |= {layer.name: layer.digest() for layer in flat if isinstance(layer, CsrLayer)}
    total = key_of("topology")
    for name, value in _agreed(flat, mine, ranks, list(budgets)).items():
        total = key_of(total, name, budgets[name].units, value)
    return f"{total & 0xFFFFFFFFFFFFFFFF:016x}"


def _agreed(layers: list[Flat], mine: dict[str, int], ranks: Ranks, names: list[str]) -> dict[str, int]:
    """The digest of every layer, on which all ranks that hold some of it agree. Collective."""
    # ~x falls as x rises: the largest ~x is that of the smallest x. Who does not hold a layer has no say.
    silent = -(1 << 63)
    table = [[f(mine[name]) if name in mine else silent for name in names] for f in (int, lambda x: ~x)]
    largest = torch.tensor(table, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=ranks.control)
    values, inverted = largest.tolist()
    wrong = [name for name, one, other in zip(names, values, inverted, strict=True) if one != ~other]
    if wrong:
        raise TopologyError(_who_differs(layers, wrong, ranks))
    return dict(zip(names, values, strict=True))


def _who_differs(layers: list[Flat], wrong: list[str], ranks: Ranks) -> str:
    """Words that name the first layer and, among ranks that hold the same part of it, those on each side."""
    own: tuple[Any, int, int] | None = None
    for layer in layers:
        if layer.name != wrong[0]:
            continue
        if isinstance(layer, CsrLayer):
            own = ((), layer.digest(), layer.budget.active)
        else:
            part = () if layer.is_replicated else tuple(ranks.place[axis] for axis in ("shard", "head", "tensor"))
            own = (part, digest(layer), int(torch.count_nonzero(layer.active)))
    told: list[tuple[Any, int, int] | None] = [None] * ranks.world
    dist.all_gather_object(told, own, group=ranks.control)
    versions: dict[Any, dict[tuple[int, int], list[int]]] = {}
    for rank, held in enumerate(told):
        if held is not None:
            part, value, active = held
            versions.setdefault(part, {}).setdefault((value, active), []).append(rank)
    sides = [
        " against ".join(
            f"ranks {', '.join(map(str, at))} ({active:,} active units)"
            for (_, active), at in sorted(each.items(), key=lambda side: len(side[1]), reverse=True)
        )
        for each in versions.values()
        if len(each) > 1
    ]
    return (
        f"{len(wrong)} of the layers differ between ranks that must hold the same topology, the first {wrong[0]}: "
        f"{'; '.join(sides)}. A device may be faulty; go on from the last checkpoint"
    )


def of_all_heads(mine: dict[str, Any], ranks: Ranks, names: list[str]) -> dict[str, Any]:
    """The entries of all layers ``names``, in that order, from those of this rank and of the owners of other heads."""
    if ranks.sizes.head == 1:
        return {name: mine[name] for name in names}
    others: list[Any] = [None] * ranks.sizes.head
    dist.all_gather_object(others, mine, group=ranks.head_group)
    merged = {name: value for each in others for name, value in each.items()}
    return {name: merged[name] for name in names}
