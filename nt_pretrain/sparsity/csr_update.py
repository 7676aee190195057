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
from nt_pretrain.parallel.candidates import Candidates, Choice, candidates, pool_of
from nt_pretrain.parallel.collectives import exact_sums, sum_integers
from nt_pretrain.parallel.select import select_largest
from nt_pretrain.parallel.single import gathered_lists, gathered_slots, held_slots
from nt_pretrain.sparsity.csr_topology import CsrLayer, ensure_possible
from nt_pretrain.sparsity.scores import drawn_codes, magnitude_codes
from nt_pretrain.sparsity.topology import LayerChange, mask_


@dataclass
class CsrTensors:
    """Of one layer and the slots held here (:func:`nt_pretrain.parallel.single.held_slots`): values, moments, average
    and gradient, as many numbers each, plain tensors that autograd does not record. SGD has no second moment.
    """

    values: Tensor
    first_moment: Tensor
    second_moment: Tensor | None = None
    average: Tensor | None = None
    gradient: Tensor | None = None


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
        tensors: for each layer name what the slots held here have.
        may_grow: for each layer name what :mod:`nt_pretrain.parallel.candidates` found in its dense gradient, with
            which grown weights go into this step; empty where ``sparsity.grow`` is random, which asks for none: then
            they are first trained in the next step.

    Raises:
        ValueError: settings of :func:`nt_pretrain.sparsity.csr_topology.ensure_possible`.
    """
    ensure_possible(choice.sparsity)
    changes = {x.name: LayerChange(x.budget.active, 0, 0, x.budget.units, x.budget.units) for x in layers}
    moving = [layer for layer in layers if not layer.is_full]
    if not moving:
        return changes
    kept = _kept(moving, tensors, choice, group)
    if choice.sparsity.grow == "random":
        may_grow = {layer.name: candidates(layer, None, choice) for layer in moving}
    grown = _grown(moving, kept, may_grow, choice, group)
    moves = [_in_slots(*each, choice) for each in zip(moving, kept, *grown, strict=True)]
    _settle(moving, moves, tensors, choice, group)
    explored = sum_integers([layer.explored_count() for layer in moving], group, torch.device("cpu"))
    for layer, move, seen in zip(moving, moves, explored, strict=True):
        moved = len(move.slots)
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
) -> tuple[list[Tensor], list[Tensor]]:
    """For each layer the numbers, ascending, of the weights that become active beside the kept ones, and their
    gradients (fp64).
    """
    drops = [choice.drops(layer.budget) for layer in layers]
    found = [may_grow[layer.name] for layer in layers]
    open_ = [(x.slots < 0) | ~stay[x.slots.clamp(min=0)] for x, stay in zip(found, kept, strict=True)]
    taken = [torch.zeros_like(flags) for flags in open_]
    if choice.sparsity.grow != "random":
        pools = [
            pool_of(
                layer.name, x.ids, magnitude_codes(x.gradients, flags), choice.ties(layer, "grow tie"),
                drop - choice.by_chance(drop),
            )
            for layer, x, flags, drop in zip(layers, found, open_, drops, strict=True)
        ]  # fmt: skip
        taken = select_largest(pools, group)
    if any(choice.by_chance(drop) for drop in drops):
        pools = [
            pool_of(
                layer.name, x.ids, x.lots.masked_fill(~flags | new, 0), choice.ties(layer, "grow random tie"),
                choice.by_chance(drop),
            )
            for layer, x, flags, new, drop in zip(layers, found, open_, taken, drops, strict=True)
        ]  # fmt: skip
        taken = [new | more for new, more in zip(taken, select_largest(pools, group), strict=True)]
    ids, gradients = [], []
    for x, flags in zip(found, taken, strict=True):
        ordered = x.ids[flags].sort()
        ids.append(ordered.values)
        gradients.append(x.gradients[flags][ordered.indices].double())
    # Ranks hold ascending runs of rows, so what is sorted on each is sorted when joined.
    return gathered_lists(ids, group), gathered_lists(gradients, group)


@dataclass(frozen=True)
class _Move:
    """What happens to the slots of one layer: bool [active], which keep their values; which took another weight
    (int64, ascending), and the gradients of those weights.
    """

    keeps: Tensor
    slots: Tensor
    gradients: Tensor


def _in_slots(layer: CsrLayer, kept: Tensor, grown: Tensor, gradients: Tensor, choice: Choice) -> _Move:
    """Put the weights ``grown`` (ascending) into the slots of those that leave."""
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
    return _Move(kept, freed, gradients[new])


def _settle(
    layers: list[CsrLayer],
    moves: list[_Move],
    tensors: dict[str, CsrTensors],
    choice: Choice,
    group: dist.ProcessGroup | None,
) -> None:
    """Zero value, average and moments of the slots held here that do not keep theirs; with ``grown_moments: mean`` the
    second moment becomes the mean of those that do. Slots that took another weight get its gradient.
    """
    seconds, fresh, terms, counts = [], [], [], []
    for layer, move in zip(layers, moves, strict=True):
        held, run = tensors[layer.name], held_slots(layer, group)
        keep = move.keeps[run]
        for tensor in (held.values, held.average, held.first_moment, held.second_moment):
            if tensor is not None:
                mask_(tensor, keep)
        if held.second_moment is not None:
            seconds.append(held.second_moment)
            fresh.append(~keep)
            terms.append(layer.budget.units)
            counts.append(int(torch.count_nonzero(move.keeps)))
        if held.gradient is not None:
            here = (move.slots >= run.start) & (move.slots < run.stop)
            flat = held.gradient.view(-1)
            flat[move.slots[here] - run.start] = move.gradients[here].to(flat.dtype)
    if choice.sparsity.grown_moments == "mean" and seconds:
        sums = exact_sums(seconds, terms, group)
        for second, flags, total, count in zip(seconds, fresh, sums, counts, strict=True):
            second.view(-1).masked_fill_(flags, total / max(count, 1))
