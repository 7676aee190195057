"""What one rank sends: counted collectives named by the axis they run along, and those of a topology update."""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.models.groups import part_of
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.blocks import block_modules, lines_group
from nt_pretrain.parallel.exchange import width
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.rehearsal.watch import Sent, Traffic
from nt_pretrain.sparsity.topology import SparseLayer

SELECTION_PASSES = 6
"""Most passes of a selection (:mod:`nt_pretrain.parallel.select`); distinct scores need three."""
HISTOGRAM_BYTES = 2048 * 4
"""Counts of one layer in one pass."""
SMALL_SUMS = 12
"""Sums of some numbers of 8 bytes a layer beside the selections: scales, second moments, counts, digests."""
REPORT_BYTES = 400
"""What ranks of other heads are told of a layer."""


def by_axis(traffic: Traffic, ranks: Ranks) -> Traffic:
    """Traffic by process group, summed by axis.

    ``shard``: what divides weights; under head parallelism of the trunk, along shard and head together, and ``shard of
    heads`` of the heads; ``replicate``, ``head``, ``tensor``.
    """
    axes: dict[str, str] = {}
    for mesh in (ranks.trunk_mesh, ranks.heads_mesh):
        for axis in ("replicate", "shard", "tensor"):
            of_heads = axis == "shard" and mesh is ranks.heads_mesh and ranks.sizes.head > 1
            axes.setdefault(mesh[axis].get_group().group_name, "shard of heads" if of_heads else axis)
    axes.setdefault(ranks.head_group.group_name, "head")
    axes.setdefault(ranks.tensor_group.group_name, "tensor")
    found: Traffic = {}
    for group, sent in traffic.items():
        if sent.calls:
            found[axes[group]] = found.get(axes[group], Sent()) + sent
    return found


def of_update(layers: list[SparseLayer], ranks: Ranks, config: Config) -> Sent:
    """Bytes and calls of one topology update at most: the counts or block scores of every layer held here."""
    sizes, sparsity = ranks.sizes, config.sparsity
    total = Sent()
    for held, among in (("trunk", sizes.shard * sizes.head * sizes.tensor), ("heads", sizes.shard * sizes.tensor)):
        part = [layer for layer in layers if (part_of(layer.name) == "trunk") == (held == "trunk")]
        if among == 1 or not part:
            continue
        by_score = 1 if sparsity.grow == "random" else 2
        selections = by_score + (sparsity.grow == "random" or sparsity.grow_random_share > 0)
        single = [layer for layer in part if layer.unit == 1]
        size = len(single) * HISTOGRAM_BYTES * SELECTION_PASSES * selections
        size += by_score * sum(8 * layer.active.numel() for layer in part if layer.unit > 1)
        size += 8 * SMALL_SUMS * 4 * len(part)
        calls = SMALL_SUMS + SELECTION_PASSES * selections * bool(single) + by_score * (len(single) < len(part))
        total += Sent(2 * (among - 1) * size // among, calls)
    return total + _reports(len(layers), ranks, config)


def of_block_update(model: MultiHead, ranks: Ranks, config: Config) -> Sent:
    """The same of layers of which only the active blocks exist, without what growth reduces in the backward pass.

    No selection asks anybody: a rank has the whole lines it decides about. It tells the others of its columns.
    """
    total, modules = Sent(), block_modules(model)
    for held in ("trunk", "heads"):
        part = {name: module for name, module in modules.items() if (part_of(name) == "trunk") == (held == "trunk")}
        if not part:
            continue
        among = width(lines_group(next(iter(part)), ranks)) * ranks.sizes.tensor
        if among > 1:
            size = 8 * SMALL_SUMS * len(part)
            total += Sent(2 * (among - 1) * size // among, SMALL_SUMS)
        for name, module in part.items():
            lines, fan = module.weight.shape[:2]
            count = width(lines_group(name, ranks))
            each = -(-(lines // ranks.sizes.tensor) // count)
            total += Sent((count - 1) * each * fan * 4, int(count > 1))
    return total + _reports(len(modules), ranks, config)


def _reports(layers: int, ranks: Ranks, config: Config) -> Sent:
    """Digests of all layers, compared by all ranks, and what ranks of other heads are told."""
    if ranks.sizes.world == 1:
        return Sent()
    everyone = 2 * 2 * 8 * config.model.heads * layers
    reports = REPORT_BYTES * layers * (ranks.sizes.head - 1)
    return Sent(everyone + reports, 1 + 2 * (ranks.sizes.head > 1))
