"""What one rank sends: counted collectives named by the axis they run along, and those of a topology update."""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.models.groups import part_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.rehearsal.watch import Sent, Traffic
from nt_pretrain.sparsity.block_budget import BlockBudget
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
    for held, width in (("trunk", sizes.shard * sizes.head * sizes.tensor), ("heads", sizes.shard * sizes.tensor)):
        part = [layer for layer in layers if (part_of(layer.name) == "trunk") == (held == "trunk")]
        if width == 1 or not part:
            continue
        by_score = 1 if sparsity.grow == "random" else 2
        selections = by_score + (sparsity.grow == "random" or sparsity.grow_random_share > 0)
        single = [layer for layer in part if layer.unit == 1]
        size = len(single) * HISTOGRAM_BYTES * SELECTION_PASSES * selections
        size += by_score * sum(8 * layer.active.numel() for layer in part if layer.unit > 1)
        size += 8 * SMALL_SUMS * 4 * len(part)
        calls = SMALL_SUMS + SELECTION_PASSES * selections * bool(single) + by_score * (len(single) < len(part))
        total += Sent(2 * (width - 1) * size // width, calls)
    everyone = 2 * 2 * 8 * config.model.heads * len(layers)  # digests of all layers, compared by all ranks
    reports = REPORT_BYTES * len(layers) * (sizes.head - 1)
    return total + Sent(everyone + reports, 1 + 2 * (sizes.head > 1)) if sizes.world > 1 else total


def of_block_update(budgets: dict[str, BlockBudget], ranks: Ranks, config: Config) -> Sent:
    """The same for layers of which only the active blocks exist, those of ``budgets``, held here.

    Growth by gradient reduces the dense gradient of each layer to the ranks that hold its lines; where blocks are is
    then told to all that multiply with them.
    """
    sizes, total = ranks.sizes, Sent()
    exact = config.parallel.deterministic_reduce or config.train.precision == "fp64"
    scored, wide = config.sparsity.grow != "random", 8 if exact else 4
    for name, budget in budgets.items():
        width = sizes.shard * (sizes.head if part_of(name) == "trunk" else 1)
        each = -(-(budget.lines // sizes.tensor) // width)
        gradient = wide * each * budget.across * budget.unit**2
        size = (width - 1) * 4 * each * budget.fan + scored * (width - 1) * gradient
        size += scored * 2 * (sizes.replicate - 1) * gradient // sizes.replicate
        # Sums of some numbers, over all ranks that hold a part of the layer.
        size += 8 * SMALL_SUMS * 4 * (width * sizes.tensor * sizes.replicate > 1)
        total += Sent(size, (width > 1) * (1 + scored) + scored * (sizes.replicate > 1))
    everyone = 2 * 2 * 8 * config.model.heads * len(budgets)
    reports = REPORT_BYTES * len(budgets) * (sizes.head - 1)
    many = 2 * SMALL_SUMS + 1 + 2 * (sizes.head > 1)
    return total + Sent(everyone + reports, many) if sizes.world > 1 else total
