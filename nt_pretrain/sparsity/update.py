"""Drop and grow: one collective topology update of all sparse layers over sharded tensors.

The new topology is a pure function of (global weights, global gradients, seed, layer name, step). It is computed on the
shards: scores are local, :func:`nt_pretrain.parallel.select.select_largest` agrees on the exact k, and what follows is
elementwise again. No rank ever holds a whole layer.

Order inside a step: gradients (dense, reduced) -> this update -> gradients of inactive weights masked -> clipping ->
optimizer. Sources: NeuroTrails (arXiv 2505.17909), RigL (arXiv 1911.11134), SET (arXiv 1707.04780), CHTs (arXiv
2501.19107).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import key_of
from nt_pretrain.parallel.collectives import exact_sums, fixed_point_scales, sum_integers
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.scores import code, magnitude_codes, soft_magnitude_codes
from nt_pretrain.sparsity.topology import LayerChange, SparseLayer, digest, mask_


@dataclass
class LayerTensors:
    """This rank's shards of one layer, as plain local tensors of equal shape.

    ``first_moment`` is AdamW's, or the momentum of SGD, which has no second moment. ``average`` is the moving average
    of the weight, where one is kept.
    """

    weight: Tensor
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor | None = None
    average: Tensor | None = None


def draw(layers: list[SparseLayer], *, seed: int, group: dist.ProcessGroup | None) -> None:
    """Draw the first topology: of each layer its budget's number of units, uniformly, a function of (seed, name)."""
    pools = []
    for layer in layers:
        anything = torch.ones_like(layer.active)
        codes = code(layer.random_bits(seed, "first topology"), anything)
        pools.append(_pool(layer, codes, layer.budget.active, (seed, "first topology tie")))
    for layer, chosen in zip(layers, _select(layers, pools, group), strict=True):
        layer.active.copy_(chosen)
        layer.explored.copy_(chosen)


def update(
    layers: list[SparseLayer],
    tensors: dict[str, LayerTensors],
    *,
    sparsity: SparsitySection,
    targets: dict[str, LayerBudget],
    prune_rate: float,
    seed: int,
    step: int,
    group: dist.ProcessGroup | None,
) -> dict[str, LayerChange]:
    """Drop the weakest units of every layer, grow as many where it pays, in place.

    Args:
        layers: all sparse layers, in the same order on every rank.
        tensors: for each layer name weight, dense gradient, moments and average of this rank.
        targets: units each layer shall have afterwards (equal to the present ones unless density is scheduled).
        prune_rate: share of active units to drop, rho(t).
        seed, step: key of every random choice.
        group: the ranks over which layers are sharded.

    Returns:
        Layer name to what changed. Layers of which all that is possible is active and stays so are left alone, bit for
        bit.
    """
    moving = [x for x in layers if not (x.budget.active == x.budget.possible == targets[x.name].active)]
    before = {layer.name: layer.active.clone() for layer in moving}
    kept = _drop(moving, tensors, sparsity, targets, prune_rate, (seed, step), group)
    grown = _grow(moving, kept, tensors, sparsity, targets, (seed, step), group)
    for layer, stay, new in zip(moving, kept, grown, strict=True):
        torch.logical_or(stay, new, out=layer.active)
        layer.explored |= layer.active
        layer.budget = targets[layer.name]
    settle(moving, before, kept, tensors, sparsity, group)
    return changes(layers, before, group)


def layer_digests(layers: list[SparseLayer], group: dist.ProcessGroup | None) -> dict[str, int]:
    """A number for each layer that identifies its topology, whatever the sharding. Collective over ``group``."""
    mine = [digest(layer) for layer in layers]
    shared = [0 if layer.is_replicated else value for layer, value in zip(layers, mine, strict=True)]
    sums = sum_integers(shared, group, _device(layers))
    return {
        layer.name: value if layer.is_replicated else total
        for layer, value, total in zip(layers, mine, sums, strict=True)
    }


def _drop(
    layers: list[SparseLayer],
    tensors: dict[str, LayerTensors],
    sparsity: SparsitySection,
    targets: dict[str, LayerBudget],
    prune_rate: float,
    key: tuple[int, int],
    group: dist.ProcessGroup | None,
) -> list[Tensor]:
    """For each layer the active units that stay."""
    values = unit_values(layers, [tensors[layer.name].weight for layer in layers], group)
    pools = []
    for layer, value in zip(layers, values, strict=True):
        active, target = layer.budget.active, targets[layer.name].active
        # A falling density drops more than the prune rate; without candidates to regrow, only inactive ones are free.
        drop = max(math.ceil(prune_rate * active), active - target)
        if sparsity.just_dropped == "exclude":
            drop = min(drop, max(layer.budget.possible - target, active - target))
        if sparsity.drop == "soft_magnitude":
            codes = soft_magnitude_codes(layer, value, temperature=sparsity.temperature, key=(*key, "drop"))
        else:
            codes = magnitude_codes(value, layer.active)
        pools.append(_pool(layer, codes, active - drop, (*key, "drop tie")))
    return _select(layers, pools, group)


def _grow(
    layers: list[SparseLayer],
    kept: list[Tensor],
    tensors: dict[str, LayerTensors],
    sparsity: SparsitySection,
    targets: dict[str, LayerBudget],
    key: tuple[int, int],
    group: dist.ProcessGroup | None,
) -> list[Tensor]:
    """For each layer the units that become active beside the kept ones. Never one that is active."""
    closed = [
        layer.active if sparsity.just_dropped == "exclude" else stay for layer, stay in zip(layers, kept, strict=True)
    ]
    # What was stripped never returns.
    closed = [
        shut if layer.stripped is None else shut | layer.stripped for layer, shut in zip(layers, closed, strict=True)
    ]
    kept_counts = _counts(layers, kept, group)
    wanted = [targets[layer.name].active - count for layer, count in zip(layers, kept_counts, strict=True)]
    by_chance = [n if sparsity.grow == "random" else math.floor(sparsity.grow_random_share * n) for n in wanted]
    grown = [torch.zeros_like(layer.active) for layer in layers]
    if sparsity.grow != "random":
        which = "gradient" if sparsity.grow == "gradient" else "first_moment"
        values = unit_values(layers, [getattr(tensors[layer.name], which) for layer in layers], group)
        pools = [
            _pool(layer, magnitude_codes(value, ~shut), n - m, (*key, "grow tie"))
            for layer, value, shut, n, m in zip(layers, values, closed, wanted, by_chance, strict=True)
        ]
        grown = _select(layers, pools, group)
    if any(by_chance):
        pools = [
            _pool(layer, code(layer.random_bits(*key, "grow"), ~(shut | new)), m, (*key, "grow random tie"))
            for layer, shut, new, m in zip(layers, closed, grown, by_chance, strict=True)
        ]
        grown = [new | more for new, more in zip(grown, _select(layers, pools, group), strict=True)]
    return grown


def settle(
    layers: list[SparseLayer],
    before: dict[str, Tensor],
    kept: list[Tensor],
    tensors: dict[str, LayerTensors],
    sparsity: SparsitySection,
    group: dist.ProcessGroup | None,
) -> None:
    """Give weights and moments of moved units their values: weight and average 0; moments as
    ``sparsity.grown_moments`` says, of which ``mean`` is about the second one only.
    """
    survivors = []
    for layer, stay in zip(layers, kept, strict=True):
        # What keeps its values: units that stayed, and by choice those that were dropped and won their place back.
        keep = stay if sparsity.just_dropped == "zero" else before[layer.name] & layer.active
        survivors.append(layer.elements(keep))
        held = tensors[layer.name]
        mask_(held.weight, survivors[-1])
        if held.average is not None:
            mask_(held.average, survivors[-1])
    if sparsity.grown_moments == "warm":
        return
    seconds = []
    for layer, keep in zip(layers, survivors, strict=True):
        held = tensors[layer.name]
        mask_(held.first_moment, keep)
        if held.second_moment is not None:
            mask_(held.second_moment, keep)
            seconds.append(held.second_moment)
    if sparsity.grown_moments == "zero" or not seconds:
        return
    # A zero second moment makes the first steps of a grown weight up to nine times those of its neighbours.
    sums = exact_sums(seconds, [x.budget.units * x.unit**2 for x in layers], group)
    counts = sum_integers([int(torch.count_nonzero(keep)) for keep in survivors], group, _device(layers))
    for layer, keep, second, total, count in zip(layers, survivors, seconds, sums, counts, strict=True):
        fresh = layer.elements(layer.active) & ~keep
        second.view(-1).masked_fill_(fresh, total / max(count, 1))


def unit_values(layers: list[SparseLayer], tensors: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """One non-negative number per unit held: the weight itself (unit 1), or the Euclidean norm of a block (fp32).

    A block may be spread over ranks; its squares are added in fixed point, so the norm is the same bits everywhere.
    """
    values = [tensor.reshape(-1) for tensor in tensors]
    blocks = [i for i, layer in enumerate(layers) if layer.unit > 1]
    if not blocks:
        return values
    sizes = [layers[i].unit ** 2 for i in blocks]
    scales = fixed_point_scales([values[i] for i in blocks], sizes, 2, group)
    tables = []
    for i, scale in zip(blocks, scales, strict=True):
        layer = layers[i]
        table = torch.zeros(layer.active.numel() // layer.block_columns, layer.block_columns, dtype=torch.int64)
        table = table.to(values[i].device)
        rows, columns = layer.held.rows.numel(), layer.block_column_of
        square = (
            values[i].view(rows, columns.numel()).to(torch.float64, copy=True).square_().mul_(scale).to(torch.int64)
        )
        strips = torch.zeros(rows, layer.block_columns, dtype=torch.int64, device=table.device)
        strips.index_add_(1, columns, square)
        tables.append(table.index_add_(0, layer.held.rows // layer.unit, strips).view(-1))
    joined = torch.cat(tables)
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(joined, group=group)
    for i, scale, table in zip(blocks, scales, joined.split([len(t) for t in tables]), strict=True):
        values[i] = (table.double() / scale).sqrt_().float()
    return values


def _pool(layer: SparseLayer, codes: Tensor, wanted: int, key: tuple[object, ...]) -> Pool:
    tie_key = key_of(*key, layer.name)
    return Pool(layer.name, codes, lambda positions: layer.tie_breaker(positions, tie_key), wanted)


def _select(layers: list[SparseLayer], pools: list[Pool], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Select over all ranks; layers of blocks, whose scores every rank holds in full, need no communication."""
    chosen: dict[str, Tensor] = {}
    for replicated in (False, True):
        part = [pool for layer, pool in zip(layers, pools, strict=True) if layer.is_replicated is replicated]
        if part:
            picked = select_largest(part, None if replicated else group)
            chosen |= {pool.name: flags for pool, flags in zip(part, picked, strict=True)}
    return [chosen[layer.name] for layer in layers]


def _counts(layers: list[SparseLayer], flags: list[Tensor], group: dist.ProcessGroup | None) -> list[int]:
    """Number of set flags of each layer over all ranks."""
    local = [int(torch.count_nonzero(flag)) for flag in flags]
    if not layers:
        return []
    summed = sum_integers(local, group, _device(layers))
    return [mine if layer.is_replicated else all_ for layer, mine, all_ in zip(layers, local, summed, strict=True)]


def changes(
    layers: list[SparseLayer], before: dict[str, Tensor], group: dist.ProcessGroup | None
) -> dict[str, LayerChange]:
    """Counts over all ranks; also the proof that each layer holds exactly its budget."""
    moved = [layer for layer in layers if layer.name in before]
    flags = [layer.active for layer in moved] + [before[layer.name] & ~layer.active for layer in moved]
    flags += [layer.active & ~before[layer.name] for layer in moved] + [layer.explored for layer in moved]
    counts = _counts(moved * 4, flags, group)
    size = len(moved)
    changes = {x.name: LayerChange(x.budget.active, 0, 0, x.budget.units, x.budget.units) for x in layers}
    for i, layer in enumerate(moved):
        active, dropped, grown, explored = (counts[i + j * size] for j in range(4))
        if active != layer.budget.active:
            raise AssertionError(f"{layer.name}: {active} active units after the update, budget {layer.budget.active}")
        changes[layer.name] = LayerChange(active, dropped, grown, explored, layer.budget.units)
    return changes


def _device(layers: list[SparseLayer]) -> torch.device:
    return layers[0].active.device if layers else torch.device("cpu")
