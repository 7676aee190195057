"""Drop and grow of single weights when only active ones exist: the update of :mod:`nt_pretrain.sparsity.update`, with
the same choices and none of its dense tensors.

What is dropped is decided over the slots, which are divided among ranks in equal runs; what grows over the rows of the
dense gradient, which are divided in equal runs too. A rank keeps of its rows only weights that could be among the
chosen, so the dense gradient of a layer can go before that of the next one comes. Then the k-th freed slot takes the
k-th grown weight, both ascending: nothing depends on the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import distinct32, key_of
from nt_pretrain.parallel.collectives import exact_sums, sum_integers
from nt_pretrain.parallel.exchange import gathered, width
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_topology import CsrLayer, layer_of_ids, part
from nt_pretrain.sparsity.scores import code, drawn_codes, magnitude_codes
from nt_pretrain.sparsity.topology import LayerChange, SparseLayer, mask_


@dataclass
class CsrTensors:
    """Of one layer and the slots held here (:func:`nt_pretrain.sparsity.csr_topology.part` of all): values, moments and
    average, as many numbers each, plain tensors that autograd does not record. SGD has no second moment.
    """

    values: Tensor
    first_moment: Tensor
    second_moment: Tensor | None = None
    average: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """Weights of the rows held here that may grow: their numbers [n] int64 and codes [n] int32
    (:mod:`nt_pretrain.sparsity.scores`), and their slots, int64, -1 for those that are not active now.
    """

    ids: Tensor
    codes: Tensor
    slots: Tensor


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


def ensure_possible(sparsity: SparsitySection) -> None:
    """Refuse settings that need what only the masked backend has.

    Raises:
        ValueError: blocks, growth by momentum, warm moments, a density schedule.
    """
    wrong = {
        f"unit: {sparsity.unit}": (sparsity.unit != 1, "slots hold single weights"),
        "grow: momentum": (
            sparsity.grow == "momentum",
            "weights that are not active have none; set gradient or random",
        ),
        "grown_moments: warm": (
            sparsity.grown_moments == "warm",
            "it needs moments of weights that are not active; set mean or zero",
        ),
        f"density_schedule: {sparsity.density_schedule}": (
            sparsity.density_schedule != "constant",
            "the number of weights is fixed with the shape of the parameters; set constant",
        ),
    }
    for setting, (is_set, why) in wrong.items():
        if is_set:
            raise ValueError(f"sparsity.{setting} is not possible with the block backend: {why}")


def draw(budgets: dict[str, LayerBudget], *, seed: int, group: dist.ProcessGroup | None) -> dict[str, CsrLayer]:
    """The first topologies, those of the masked backend: a function of (seed, layer name). Collective over ``group``,
    the ranks over which the layers are divided.

    Raises:
        ValueError: a layer is no matrix.
    """
    rank, ranks = _rank(group), width(group)
    pools, numbers = [], []
    for name, budget in budgets.items():
        rows = part(budget.shape[0], ranks, rank)
        empty = torch.empty(0, dtype=torch.int64)
        grid = CsrLayer(name, budget, empty, rows, empty).grid(empty)
        codes = code(grid.random_bits(seed, "first topology"), ~grid.active)
        tie_key = key_of(seed, "first topology tie", name)
        positions = _best(grid, codes, tie_key, budget.active)
        numbers.append(grid.unit_index(positions))
        pools.append(_pool(name, numbers[-1], codes[positions], tie_key, budget.active))
    chosen = [ids[flags] for ids, flags in zip(numbers, select_largest(pools, group), strict=True)]
    return {
        name: layer_of_ids(name, budget, ids, part(budget.shape[0], ranks, rank))
        for (name, budget), ids in zip(budgets.items(), gathered_lists(chosen, group), strict=True)
    }


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
    positions = _best(grid, codes, _tie_key(layer, choice, "grow tie"), drops - choice.by_chance(drops))
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
        may_grow: for each layer name what :func:`candidates` found, unless ``sparsity.grow`` is random.

    Raises:
        ValueError: settings of :func:`ensure_possible`.
    """
    ensure_possible(choice.sparsity)
    moving = [layer for layer in layers if not layer.is_full]
    kept = _kept(moving, tensors, choice, group)
    grown = _grown(moving, kept, may_grow, choice, group)
    moves = [_in_slots(layer, stay, new, choice) for layer, stay, new in zip(moving, kept, grown, strict=True)]
    _settle(moving, [stays for stays, _ in moves], tensors, choice, group)
    explored = sum_integers([layer.explored_count() for layer in moving], group, torch.device("cpu"))
    changes = {x.name: LayerChange(x.budget.active, 0, 0, x.budget.units, x.budget.units) for x in layers}
    for layer, (_, moved), seen in zip(moving, moves, explored, strict=True):
        changes[layer.name] = LayerChange(layer.budget.active, moved, moved, seen, layer.budget.units)
    return changes


def gathered_lists(lists: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Each of ``lists`` (int64, of any lengths, as many on every rank) joined over the ranks, in their order."""
    ranks = width(group)
    if ranks == 1:
        return lists
    lengths = gathered(torch.tensor([[len(each) for each in lists]], dtype=torch.int64), 0, group)
    most = int(lengths.sum(1).max())
    own = torch.zeros(most, dtype=torch.int64)
    joined = torch.cat(lists)
    own[: len(joined)] = joined
    by_rank = gathered(own, 0, group).view(ranks, most)
    pieces = [row[: int(many.sum())].split(many.tolist()) for row, many in zip(by_rank, lengths, strict=True)]
    return [torch.cat(each) for each in zip(*pieces, strict=True)]


def gathered_slots(parts: list[Tensor], counts: list[int], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Tensors of all slots from those of the slots held here (flat, of one dtype); ``counts`` are all slots of each."""
    ranks = width(group)
    if ranks == 1:
        return parts
    sizes = [-(-count // ranks) for count in counts]
    padded = [torch.nn.functional.pad(each, (0, size - len(each))) for each, size in zip(parts, sizes, strict=True)]
    by_rank = gathered(torch.cat(padded)[None], 0, group)
    return [each.reshape(-1)[:count] for each, count in zip(by_rank.split(sizes, 1), counts, strict=True)]


def _kept(
    layers: list[CsrLayer], tensors: dict[str, CsrTensors], choice: Choice, group: dist.ProcessGroup | None
) -> list[Tensor]:
    """For each layer bool [active]: the slots whose weights stay."""
    pools = []
    for layer in layers:
        values = tensors[layer.name].values.reshape(-1)
        slots = part(layer.budget.active, width(group), _rank(group))
        if len(slots) != len(values):
            raise ValueError(f"{layer.name}: {len(values)} values are held here, {len(slots)} expected")
        ids, every = layer.ids[slots.start : slots.stop], torch.ones(len(values), dtype=torch.bool)
        if choice.sparsity.drop == "soft_magnitude":
            key = key_of(choice.seed, choice.step, "drop", layer.name)
            codes = drawn_codes(values, every, ids.__getitem__, temperature=choice.sparsity.temperature, key=key)
        else:
            codes = magnitude_codes(values, every)
        stay = layer.budget.active - choice.drops(layer.budget)
        pools.append(_pool(layer.name, ids, codes, _tie_key(layer, choice, "drop tie"), stay))
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
            pools.append(_pool(layer.name, found.ids, codes, _tie_key(layer, choice, "grow tie"), wanted))
        picked = select_largest(pools, group)
        grown = [may_grow[layer.name].ids[flags] for layer, flags in zip(layers, picked, strict=True)]
    if any(choice.by_chance(drop) for drop in drops):
        pools, numbers = [], []
        for layer, stay, new, drop in zip(layers, kept, grown, drops, strict=True):
            grid = layer.grid(torch.cat([layer.ids if exclude else layer.ids[stay], new]))
            codes = code(grid.random_bits(choice.seed, choice.step, "grow"), ~grid.active)
            tie_key, wanted = _tie_key(layer, choice, "grow random tie"), choice.by_chance(drop)
            positions = _best(grid, codes, tie_key, wanted)
            numbers.append(grid.unit_index(positions))
            pools.append(_pool(layer.name, numbers[-1], codes[positions], tie_key, wanted))
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
        held, slots = tensors[layer.name], part(layer.budget.active, width(group), _rank(group))
        keep = every[slots.start : slots.stop]
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


def _best(grid: SparseLayer, codes: Tensor, tie_key: int, most: int) -> Tensor:
    """Positions (int64) of the ``most`` largest of ``codes``, or of all candidates if there are fewer."""
    wanted = min(most, int(torch.count_nonzero(codes)))
    pool = Pool(grid.name, codes, lambda positions: grid.tie_breaker(positions, tie_key), wanted)
    return select_largest([pool], None)[0].nonzero().view(-1)


def _pool(name: str, ids: Tensor, codes: Tensor, tie_key: int, wanted: int) -> Pool:
    return Pool(name, codes, lambda positions: distinct32(tie_key, ids[positions]), wanted)


def _tie_key(layer: CsrLayer, choice: Choice, what: str) -> int:
    return key_of(choice.seed, choice.step, what, layer.name)


def _rank(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group)
