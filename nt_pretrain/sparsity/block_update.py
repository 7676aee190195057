"""Drop and grow for layers of blocks: the update of :mod:`nt_pretrain.sparsity.update`, line by line and in place.

Every line drops its weakest blocks and grows as many, so a line's new blocks depend on its own values and scores only
and a rank that holds whole lines asks nobody. A layer drops as many blocks as the masked backend would; they are dealt
over its lines by whole numbers, which are a function of (seed, step, layer name, line). With one line the two backends
do the same, block for block.

In two steps, because one number is of the whole layer: :func:`choose_blocks` says what moves, :func:`move_blocks` does
it. A grown block takes the slot of a dropped one, so parameters, moments and their shapes stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import CHUNK, distinct32, key_of
from nt_pretrain.sparsity.block_select import largest_in_lines, mixed_places, shares
from nt_pretrain.sparsity.block_topology import BlockLayer, by_line, oriented, ties_by_line
from nt_pretrain.sparsity.scores import code, magnitude_codes, soft_magnitude_codes


@dataclass
class BlockTensors:
    """Of one layer and the lines held here: values, moments and average, [L, fan, b, b] each, plain tensors that
    autograd does not record. As :class:`nt_pretrain.sparsity.update.LayerTensors`, but the gradient is that of the
    blocks that were active; grown ones are first trained in the next step.
    """

    values: Tensor
    first_moment: Tensor
    second_moment: Tensor | None = None
    average: Tensor | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class BlockMove:
    """What an update does to the lines held here, by slot.

    Attributes:
        columns: [L, fan] int32, the table afterwards.
        kept: [L, fan] bool, slots whose values and moments stay; the others start again at zero.
        dropped, grown: global numbers (int64) of the blocks that were active and are no longer, and the other way
            round; by line, then by slot.
    """

    columns: Tensor
    kept: Tensor
    dropped: Tensor
    grown: Tensor


@dataclass(frozen=True)
class BlockChange:
    """What an update did to the lines held here, counted in blocks; over ranks that hold other lines counts add up."""

    active: int
    dropped: int
    grown: int
    explored: int
    units: int


def ensure_possible(sparsity: SparsitySection) -> None:
    """Refuse settings that need weights or moments of blocks that do not exist.

    Raises:
        ValueError: single weights, growth by momentum, warm moments, a density schedule.
    """
    wrong = {
        "unit: 1": (sparsity.unit == 1, "single weights are no blocks; set 16, 32, 64 or 128"),
        "grow: momentum": (sparsity.grow == "momentum", "blocks that are not active have none; set gradient or random"),
        "grown_moments: warm": (
            sparsity.grown_moments == "warm",
            "it needs moments of blocks that are not active; set mean or zero",
        ),
        f"density_schedule: {sparsity.density_schedule}": (
            sparsity.density_schedule != "constant",
            "every line keeps its number of blocks, with which parameters have their shape; set constant",
        ),
    }
    for setting, (is_set, why) in wrong.items():
        if is_set:
            raise ValueError(f"sparsity.{setting} is not possible with sparsity.balance: line: {why}")


def block_norms(values: Tensor) -> Tensor:
    """[L, fan] fp32 Euclidean norms of the blocks of ``values`` [L, fan, b, b]; nan where a value is not finite.

    Squares are added in fixed point, scaled by the block's largest, so the result depends neither on the order of the
    weights nor on how many blocks are computed together.
    """
    blocks = values.reshape(-1, values.shape[-2] * values.shape[-1])
    norms = torch.empty(blocks.shape[0], dtype=torch.float32, device=values.device)
    size = max(1, blocks.shape[1])
    # Squares below 1 in a sum that fits 62 bits.
    scale = float(1 << (61 - math.ceil(math.log2(size))))
    for start in range(0, norms.numel(), max(1, CHUNK // size)):
        part = slice(start, start + max(1, CHUNK // size))
        wide = blocks[part].to(torch.float64).abs()
        largest = wide.amax(dim=1)
        # The power of two above the largest, made from its bits: dividing by it is exact, on every device.
        exponent = torch.frexp(largest).exponent.to(torch.int64).clamp_(-1022, 1023)
        unit = ((exponent + 1023) << 52).view(torch.float64)
        squares = (wide / unit[:, None]).square_().mul_(scale).to(torch.int64).sum(dim=1)
        exact = (squares.to(torch.float64) / scale).sqrt_() * unit
        norms[part] = torch.where(largest.isfinite(), exact, torch.nan).float()
    return norms.view(values.shape[:2])


def choose_blocks(
    layer: BlockLayer,
    norms: Tensor,
    scores: Tensor | None,
    *,
    sparsity: SparsitySection,
    prune_rate: float,
    seed: int,
    step: int,
) -> BlockMove:
    """What an update does; nothing is changed yet.

    Args:
        norms: [L, fan] non-negative, by slot: :func:`block_norms` of the values.
        scores: non-negative, of all blocks of the held lines as ``layer.to_table()`` has them: norms of the blocks of
            the dense mean gradient. None for ``sparsity.grow: random`` and for layers that are full.
        prune_rate: share of active blocks to drop, rho(t).
        seed, step: key of every random choice.

    Raises:
        ValueError: settings of :func:`ensure_possible`; scores are missing, not asked for or of another shape.
    """
    ensure_possible(sparsity)
    active = layer.active()
    if layer.budget.fan == layer.budget.across:
        return BlockMove(layer.columns.clone(), torch.ones_like(layer.columns, dtype=torch.bool), *_nothing(layer))
    _ensure_scores(layer, scores, sparsity)
    drops, by_chance = _quotas(layer, prune_rate, sparsity, (seed, step))
    stay = _stay(layer, active, norms, drops, sparsity, (seed, step))
    grown = _grow(layer, active, stay, scores, (drops, by_chance), sparsity, (seed, step))
    return _in_slots(layer, active, stay, grown, sparsity)


def move_blocks(
    layer: BlockLayer, move: BlockMove, tensors: BlockTensors, *, second_moment: float | None = None
) -> BlockChange:
    """Do what ``move`` says, in place: topology, transposed index, values, moments and average.

    Args:
        second_moment: what the second moment of a slot that starts again becomes: the mean over all kept slots of the
            layer, on all ranks (``grown_moments: mean``), or None for zero.
    """
    fresh = ~move.kept
    for held in (tensors.values, tensors.first_moment, tensors.second_moment, tensors.average, tensors.gradient):
        if held is not None:
            held[fresh] = 0.0
    if second_moment is not None and tensors.second_moment is not None:
        tensors.second_moment[fresh] = second_moment
    layer.columns.copy_(move.columns)
    layer.explored |= layer.active()
    layer.refresh()
    return BlockChange(
        layer.columns.numel(),
        move.dropped.numel(),
        move.grown.numel(),
        int(torch.count_nonzero(layer.explored)),
        layer.lines.numel() * layer.budget.across,
    )


def _ensure_scores(layer: BlockLayer, scores: Tensor | None, sparsity: SparsitySection) -> None:
    needed = sparsity.grow != "random"
    if needed != (scores is not None):
        verb = "needs" if needed else "takes no"
        raise ValueError(f"{layer.name}: sparsity.grow: {sparsity.grow} {verb} scores of blocks")
    held, across = layer.lines.numel(), layer.budget.across
    shape = (held, across) if layer.budget.balance == "row" else (across, held)
    if scores is not None and tuple(scores.shape) != shape:
        raise ValueError(f"{layer.name}: scores of blocks are {list(scores.shape)}, {list(shape)} expected")


def _nothing(layer: BlockLayer) -> tuple[Tensor, Tensor]:
    empty = torch.empty(0, dtype=torch.int64, device=layer.columns.device)
    return empty, empty.clone()


def _quotas(
    layer: BlockLayer, prune_rate: float, sparsity: SparsitySection, key: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """[L] int64 each: how many blocks a held line drops, and how many of them it regrows at random.

    Over the layer both are the numbers of the masked backend: a share of a line's few blocks is hardly ever whole, and
    to round it in every line would drop one of each even at the end of the schedule. Lines take turns at random.
    """
    budget, device = layer.budget, layer.lines.device
    every = torch.arange(budget.lines, device=device)
    drops = shares(math.ceil(prune_rate * budget.active), every, budget.lines)
    if sparsity.just_dropped == "exclude":
        # Without candidates to regrow, only inactive blocks are free.
        drops = drops.clamp(max=budget.across - budget.fan)
    if sparsity.grow == "random":
        by_chance = drops
    else:
        until = torch.cat([drops.new_zeros(1), drops.cumsum(0)]).to(torch.float64)
        by_chance = until.mul_(sparsity.grow_random_share).floor_().to(torch.int64).diff()
    places = mixed_places(distinct32(key_of(*key, "lines", layer.name), every), layer.lines)
    return drops[places], by_chance[places]


def _stay(
    layer: BlockLayer, active: Tensor, norms: Tensor, drops: Tensor, sparsity: SparsitySection, key: tuple[int, int]
) -> Tensor:
    """[L, across] bool: the active blocks that stay."""
    values = torch.zeros(active.shape, dtype=torch.float32, device=active.device)
    values.scatter_(1, layer.columns.to(torch.int64), norms.float())
    if sparsity.drop == "soft_magnitude":
        flat = oriented(values, layer.budget.balance).reshape(-1)
        drawn = soft_magnitude_codes(layer.grid(), flat, temperature=sparsity.temperature, key=(*key, "drop"))
        codes = by_line(layer, drawn)
    else:
        codes = magnitude_codes(values, active.reshape(-1)).view(active.shape)
    return largest_in_lines(layer.name, codes, ties_by_line(layer, *key, "drop tie"), layer.budget.fan - drops)


def _grow(
    layer: BlockLayer,
    active: Tensor,
    stay: Tensor,
    scores: Tensor | None,
    quotas: tuple[Tensor, Tensor],
    sparsity: SparsitySection,
    key: tuple[int, int],
) -> Tensor:
    """[L, across] bool: the blocks that become active beside those that stay. Never one of these."""
    shut = active if sparsity.just_dropped == "exclude" else stay
    drops, by_chance = quotas
    grown = torch.zeros_like(stay)
    if scores is not None:
        values = oriented(scores, layer.budget.balance)
        codes = magnitude_codes(values, ~shut.reshape(-1)).view(shut.shape)
        grown = largest_in_lines(layer.name, codes, ties_by_line(layer, *key, "grow tie"), drops - by_chance)
    if bool(by_chance.any()):
        bits = by_line(layer, layer.grid().random_bits(*key, "grow"))
        ties = ties_by_line(layer, *key, "grow random tie")
        grown = grown | largest_in_lines(layer.name, code(bits, ~(shut | grown)), ties, by_chance)
    return grown


def _in_slots(layer: BlockLayer, active: Tensor, stay: Tensor, grown: Tensor, sparsity: SparsitySection) -> BlockMove:
    """Grown blocks in the slots of dropped ones: in each line the lowest new column in the lowest free slot."""
    columns = layer.columns.to(torch.int64)
    after = stay | grown
    freed = ~after.gather(1, columns)
    fresh = after & ~active
    moved = layer.columns.clone()
    # Both sides list, line by line and ascending, as many as each line replaces.
    moved[freed] = torch.nonzero(fresh)[:, 1].to(torch.int32)
    stayed = stay.gather(1, columns) if sparsity.just_dropped == "zero" else ~freed
    lines = torch.nonzero(freed)[:, 0]
    return BlockMove(moved, stayed, layer.ids()[freed], _ids(layer, lines, moved[freed]))


def _ids(layer: BlockLayer, positions: Tensor, columns: Tensor) -> Tensor:
    """Global numbers of the blocks at ``columns`` of the held lines at ``positions``."""
    lines, wide = layer.lines[positions], columns.to(torch.int64)
    return lines * layer.budget.columns + wide if layer.budget.balance == "row" else wide * layer.budget.columns + lines
