"""Drop and grow of single weights when only active ones exist: the update of :mod:`nt_pretrain.sparsity.update`, with
the same choices and none of its dense tensors.

What is dropped is decided over the slots, which are divided among ranks in equal runs; what grows over the rows of the
dense gradient, which are divided in equal runs too (:mod:`nt_pretrain.parallel.candidates`). Then the k-th freed slot
takes the k-th grown weight, both ascending: nothing depends on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.counter_random import key_of
from nt_pretrain.parallel.candidates import Candidates, Choice, best, pool_of
from nt_pretrain.parallel.collectives import exact_sums, sum_integers
from nt_pretrain.parallel.select import select_largest
from nt_pretrain.parallel.single import gathered_lists, gathered_slots, held_slots
from nt_pretrain.sparsity.csr_topology import CsrLayer, ensure_possible
from nt_pretrain.sparsity.scores import code, drawn_codes, magnitude_codes
from nt_pretrain.sparsity.topology import LayerChange, mask_


@dataclass
class CsrTensors:
    """Of one layer and the slots held here (:func:`nt_pretrain.parallel.single.held_slots`): values, moments and
    average, as many numbers each, plain tensors that autograd does not record. SGD has no second moment.
    """

    values: Tensor
    first_moment: Tensor
    second_moment: Tensor | None = None
    average: Tensor | None = None


def update(
    layers: list[CsrLayer],
    tensors: dict[str, CsrTensors],
    may_grow: dict[str, Candidates],
    choice: Choice,
    group: dist.ProcessGroup | None,
) -> dict[str, LayerChange]:
    """Drop the weakest weights of every layer, grow as many where it pays, in place; the set of active weights is then
    the masked backend's. Collective over ``group``, the ranks over which the layers are divided.

    Args:
        layers: all layers, in the same order on every rank. Those with all weights active are left alone.
        tensors: for each layer name values, moments and average of the slots held here.
        may_grow: for each layer name what :mod:`nt_pretrain.parallel.candidates` found, unless ``sparsity.grow`` is
            random.

    Raises:
        ValueError: settings of :func:`nt_pretrain.sparsity.csr_topology.ensure_possible`.
    """
    ensure_possible(choice.sparsity)
    changes = {x.name: LayerChange(x.budget.active, 0, 0, x.budget.units, x.budget.units) for x in layers}
    moving = [layer for layer in layers if not layer.is_full]
    if not moving:
        return changes
    kept = _kept(moving, tensors, choice, group)
    grown = _grown(moving, kept, may_grow, choice, group)
    moves = [_in_slots(layer, stay, new, choice) for layer, stay, new in zip(moving, kept, grown, strict=True)]
    _settle(moving, [stays for stays, _ in moves], tensors, choice, group)
    explored = sum_integers([layer.explored_count() for layer in moving], group, torch.device("cpu"))
    for layer, (_, moved), seen in zip(moving, moves, explored, strict=True):
        changes[layer.name] = LayerChange(layer.budget.active, moved, moved, seen, layer.budget.units)
    return changes


def _kept(
    layers: list[CsrLayer], tensors: dict[str, CsrTensors], choice: Choice, group: dist.ProcessGroup | None
) -> list[Tensor]:
    """For each layer bool [active]: the slots whose weights stay."""
    pools = []
    for layer in layers:
        values = tensors[layer.name].values.reshape(-1)
        ids = layer.ids[held_slots(layer, group)]
        if len(ids) != len(values):
            raise ValueError(f"{layer.name}: {len(values)} values are held here, {len(ids)} expected")
        every = torch.ones(len(values), dtype=torch.bool)
        if choice.sparsity.drop == "soft_magnitude":
            key = key_of(choice.seed, choice.step, "drop", layer.name)
            codes = drawn_codes(values, every, ids.__getitem__, temperature=choice.sparsity.temperature, key=key)
        else:
            codes = magnitude_codes(values, every)
        stay = layer.budget.active - choice.drops(layer.budget)
        pools.append(pool_of(layer.name, ids, codes, choice.ties(layer, "drop tie"), stay))
    flags = [each.view(torch.uint8) for each in select_largest(pools, group)]
    return [each.bool() for each in gathered_slots(flags, [layer.budget.active for layer in layers], group)]


def _grown(
    layers: list[CsrLayer],
    kept: list[Tensor],
    may_grow: dict[str, Candidates],
    choice: Choice,
    group: dist.ProcessGroup | None,
) -> list[Tensor]:
    """For each layer the numbers, ascending, of the weights that become active beside the kept ones."""
    exclude = choice.sparsity.just_dropped == "exclude"
    drops = [choice.drops(layer.budget) for layer in layers]
    grown = [torch.empty(0, dtype=torch.int64) for _ in layers]
    if choice.sparsity.grow != "random":
        pools = []
        for layer, stay, drop in zip(layers, kept, drops, strict=True):
            found = may_grow[layer.name]
            open_ = (found.slots < 0) | ~stay[found.slots.clamp(min=0)]
            codes = found.codes.masked_fill(~open_, 0)
            wanted = drop - choice.by_chance(drop)
            pools.append(pool_of(layer.name, found.ids, codes, choice.ties(layer, "grow tie"), wanted))
        picked = select_largest(pools, group)
        grown = [may_grow[layer.name].ids[flags] for layer, flags in zip(layers, picked, strict=True)]
    if any(choice.by_chance(drop) for drop in drops):
        pools, numbers = [], []
        for layer, stay, new, drop in zip(layers, kept, grown, drops, strict=True):
            grid = layer.grid(torch.cat([layer.ids if exclude else layer.ids[stay], new]))
            codes = code(grid.random_bits(choice.seed, choice.step, "grow"), ~grid.active)
            ties, wanted = choice.ties(layer, "grow random tie"), choice.by_chance(drop)
            positions = best(grid, codes, ties, wanted)
            numbers.append(grid.unit_index(positions))
            pools.append(pool_of(layer.name, numbers[-1], codes[positions], ties, wanted))
        picked = select_largest(pools, group)
        grown = [torch.cat([new, ids[flags]]) for new, ids, flags in zip(grown, numbers, picked, strict=True)]
    # Ranks hold ascending runs of rows, so what is sorted on each is sorted when joined.
    return gathered_lists([each.sort().values for each in grown], group)


def _in_slots(layer: CsrLayer, kept: Tensor, grown: Tensor, choice: Choice) -> tuple[Tensor, int]:
    """Put the weights ``grown`` (ascending) into slots; returns which slots keep their values, bool [active], and how
    many took another weight.
    """
    dropped = (~kept).nonzero().view(-1)
    old = layer.ids[dropped]
    at = torch.searchsorted(grown, old).clamp_(max=max(len(grown) - 1, 0))
    returned = grown[at] == old if len(grown) else torch.zeros_like(old, dtype=torch.bool)
    new = torch.ones_like(grown, dtype=torch.bool).index_fill_(0, at[returned], False)
    freed, fresh = dropped[~returned], grown[new]
    if len(freed) != len(fresh):
        raise AssertionError(f"{layer.name}: {len(freed)} weights leave and {len(fresh)} come")
    layer.ids[freed] = fresh
    layer.remember(fresh)
    if choice.sparsity.just_dropped != "zero":
        kept = kept.index_fill(0, dropped[returned], True)
    return kept, len(fresh)


def _settle(
    layers: list[CsrLayer],
    stays: list[Tensor],
    tensors: dict[str, CsrTensors],
    choice: Choice,
    group: dist.ProcessGroup | None,
) -> None:
    """Zero value, average and moments of the slots held here that do not keep theirs; with ``grown_moments: mean`` the
    second moment becomes the mean of those that do.
    """
    seconds, fresh, terms, counts = [], [], [], []
    for layer, every in zip(layers, stays, strict=True):
        held, keep = tensors[layer.name], every[held_slots(layer, group)]
        for tensor in (held.values, held.average, held.first_moment, held.second_moment):
            if tensor is not None:
                mask_(tensor, keep)
        if held.second_moment is not None:
            seconds.append(held.second_moment)
            fresh.append(~keep)
            terms.append(layer.budget.units)
            counts.append(int(torch.count_nonzero(every)))
    if choice.sparsity.grown_moments == "mean" and seconds:
        sums = exact_sums(seconds, terms, group)
        for second, flags, total, count in zip(seconds, fresh, sums, counts, strict=True):
            second.view(-1).masked_fill_(flags, total / max(count, 1))
