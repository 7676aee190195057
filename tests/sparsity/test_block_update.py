"""Drop and grow of blocks against the masked algorithm restricted to lines, and against the masked backend itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import distinct32, key_of
from nt_pretrain.parallel.collectives import exact_sums
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer, oriented
from nt_pretrain.sparsity.block_update import (
    BlockTensors,
    block_norms,
    choose_blocks,
    ensure_possible,
    move_blocks,
)
from nt_pretrain.sparsity.scores import code, magnitude_codes, soft_magnitude_codes
from nt_pretrain.sparsity.topology import Held, SparseLayer, empty_layer
from nt_pretrain.sparsity.update import LayerTensors, unit_values
from nt_pretrain.sparsity.update import update as masked_update
from tests.sparsity.blocks import NAME, budget_of, budgets, dense_of, divided, whole
from tests.sparsity.test_block_topology import ensure_sound, masked_of

SETTINGS = st.fixed_dictionaries(
    {
        "drop": st.sampled_from(["magnitude", "soft_magnitude"]),
        "grow": st.sampled_from(["gradient", "random"]),
        "grow_random_share": st.sampled_from([0.0, 0.3, 1.0]),
        "just_dropped": st.sampled_from(["keep", "zero", "exclude"]),
        "grown_moments": st.sampled_from(["mean", "zero"]),
    }
)


def section(**options) -> SparsitySection:
    return SparsitySection(**{"density": 0.5, "unit": 16} | options)


def tensors_of(layer: BlockLayer, seed: int = 0) -> BlockTensors:
    """Values, moments, average and gradient of a whole layer; small integers among them, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*layer.columns.shape, layer.budget.unit, layer.budget.unit)
    values = torch.randint(-2, 3, shape, generator=generator).float()
    first, second, average, gradient = (torch.randn(shape, generator=generator) for _ in range(4))
    return BlockTensors(values, first, second.square(), average, gradient)


def gradient_of(budget: BlockBudget, seed: int = 1) -> torch.Tensor:
    return torch.randint(-3, 4, budget.shape, generator=torch.Generator().manual_seed(seed)).float()


def scores_of(budget: BlockBudget, gradient: torch.Tensor) -> torch.Tensor:
    """Norms of all blocks [rows, columns] of a dense gradient."""
    b = budget.unit
    return block_norms(gradient.view(budget.rows, b, budget.columns, b).transpose(1, 2))


def update(layer, tensors, scores, options, *, prune_rate=0.4, step=3, parts=None):
    """One update of ``parts`` (lists of all lines together), as ranks would do it; the mean is of all of them."""
    parts = parts or [(layer, tensors, scores)]
    moves = [
        choose_blocks(
            part, block_norms(held.values), None if options.grow == "random" else score, sparsity=options,
            prune_rate=prune_rate, seed=7, step=step,
        )
        for part, held, score in parts
    ]  # fmt: skip
    mean = None
    if options.grown_moments == "mean":
        kept = torch.cat([held.second_moment[move.kept] for move, (_, held, _) in zip(moves, parts, strict=True)])
        budget = parts[0][0].budget
        (total,) = exact_sums([kept], [budget.units * budget.unit**2], None)
        mean = total / max(kept.numel(), 1)
    changes = [
        move_blocks(part, move, held, second_moment=mean)
        for move, (part, held, _) in zip(moves, parts, strict=True)
    ]  # fmt: skip
    return moves, changes


def largest_by_line(budget: BlockBudget, masked: SparseLayer, codes, wanted, *key) -> torch.Tensor:
    """The masked backend's selection, run on every line alone."""
    numbers = oriented(torch.arange(budget.units).view(budget.rows, budget.columns), budget.balance)
    chosen = torch.zeros(budget.units, dtype=torch.bool)
    tie_key = key_of(*key, masked.name)
    for line, units in enumerate(numbers):
        pool = Pool(
            masked.name, codes[units], lambda at, units=units: masked.tie_breaker(units[at], tie_key), wanted[line]
        )
        chosen[units] = select_largest([pool], None)[0]
    return chosen


def dealt(total: int, lines: int, step: int) -> tuple[list[int], list[int]]:
    order = sorted(
        range(lines), key=lambda x: int(distinct32(key_of(7, step, "lines", NAME), torch.tensor([x])))
    )  # fmt: skip
    counts = [0] * lines
    for place, line in enumerate(order):
        counts[line] = (place + 1) * total // lines - place * total // lines
    return counts, order


def oracle(budget, masked, dense: LayerTensors, options, *, prune_rate, step):
    """The update of a dense layer with per-line counts; changes ``masked`` and ``dense`` in place."""
    drops, order = dealt(math.ceil(prune_rate * budget.active), budget.lines, step)
    if options.just_dropped == "exclude":
        drops = [min(drop, budget.across - budget.fan) for drop in drops]
    chance, before = [0] * budget.lines, 0
    for line in order:
        share = 1.0 if options.grow == "random" else options.grow_random_share
        chance[line] = math.floor(share * (before + drops[line])) - math.floor(share * before)
        before += drops[line]
    active = masked.active.clone()
    values = unit_values([masked], [dense.weight], None)[0]
    if options.drop == "soft_magnitude":
        codes = soft_magnitude_codes(masked, values, temperature=options.temperature, key=(7, step, "drop"))
    else:
        codes = magnitude_codes(values, active)
    stay = largest_by_line(budget, masked, codes, [budget.fan - drop for drop in drops], 7, step, "drop tie")
    shut = active if options.just_dropped == "exclude" else stay
    grown = torch.zeros_like(stay)
    if options.grow != "random":
        codes = magnitude_codes(unit_values([masked], [dense.gradient], None)[0], ~shut)
        wanted = [drop - luck for drop, luck in zip(drops, chance, strict=True)]
        grown = largest_by_line(budget, masked, codes, wanted, 7, step, "grow tie")
    codes = code(masked.random_bits(7, step, "grow"), ~(shut | grown))
    grown |= largest_by_line(budget, masked, codes, chance, 7, step, "grow random tie")
    after = stay | grown
    keep = stay if options.just_dropped == "zero" else active & after
    masked.active.copy_(after)
    kept = masked.elements(keep).view(budget.shape)
    fresh = masked.elements(after).view(budget.shape) & ~kept
    mean = exact_sums([dense.second_moment * kept], [budget.units * budget.unit**2], None)[0] / max(int(kept.sum()), 1)
    for tensor in (dense.weight, dense.first_moment, dense.second_moment, dense.average):
        tensor.mul_(kept)
    if options.grown_moments == "mean":
        dense.second_moment[fresh] = mean


def dense_tensors(layer, tensors, gradient) -> LayerTensors:
    values, first, second, average = (
        dense_of(layer, t) for t in (tensors.values, tensors.first_moment, tensors.second_moment, tensors.average)
    )
    return LayerTensors(values, gradient, first, second, average)


def ensure_same(layer: BlockLayer, tensors: BlockTensors, masked: SparseLayer, dense: LayerTensors) -> None:
    assert torch.equal(layer.to_table().view(-1), masked.active)
    assert torch.equal(dense_of(layer, tensors.values), dense.weight)
    assert torch.equal(dense_of(layer, tensors.first_moment), dense.first_moment)
    assert torch.equal(dense_of(layer, tensors.second_moment), dense.second_moment)
    assert torch.equal(dense_of(layer, tensors.average), dense.average)


RATES = st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.9, 1.0])


@settings(max_examples=120, deadline=None)
@given(budgets(), SETTINGS, RATES, st.integers(0, 50))
def test_equals_the_masked_algorithm_restricted_to_lines(budget, options, prune_rate, seed):
    options = section(**options)
    layer = whole(budget, seed)
    tensors, masked = tensors_of(layer, seed), masked_of(layer)
    gradient = gradient_of(budget, seed)
    dense = dense_tensors(layer, tensors, gradient)
    for step in (3, 4):
        if budget.fan < budget.across:  # a dense layer is left alone
            oracle(budget, masked, dense, options, prune_rate=prune_rate, step=step)
        update(layer, tensors, scores_of(budget, gradient), options, prune_rate=prune_rate, step=step)
        ensure_same(layer, tensors, masked, dense)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 30), st.data(), SETTINGS, RATES, st.integers(0, 50))
def test_one_line_equals_the_masked_backend(columns, data, options, prune_rate, seed):
    budget = budget_of(1, columns, data.draw(st.integers(1, columns - 1)))
    layer, options = whole(budget, seed), section(**options)
    tensors, masked, gradient = tensors_of(layer, seed), masked_of(layer), gradient_of(budget, seed)
    masked.explored.copy_(masked.active)
    dense = dense_tensors(layer, tensors, gradient)
    for step in (3, 4):
        targets = {NAME: masked.budget}
        told = masked_update(
            [masked], {NAME: dense}, sparsity=options, targets=targets, prune_rate=prune_rate, seed=7, step=step,
            group=None,
        )[NAME]  # fmt: skip
        _, (change,) = update(
            layer, tensors, scores_of(budget, gradient), options, prune_rate=prune_rate, step=step
        )  # fmt: skip
        ensure_same(layer, tensors, masked, dense)
        assert torch.equal(layer.explored.view(-1), masked.explored)
        assert vars(change) == vars(told)


@settings(max_examples=60, deadline=None)
@given(budgets(), SETTINGS, RATES, st.sampled_from([2, 4]), st.integers(0, 50))
def test_the_same_bits_however_lines_are_divided(budget, options, prune_rate, parts, seed):
    options = section(**options)
    layer = whole(budget, seed)
    tensors, scores = tensors_of(layer, seed), scores_of(budget, gradient_of(budget, seed))
    held = []
    for lines in divided(budget.lines, parts):
        own = BlockTensors(*(t[lines].clone() for t in vars(tensors).values()))
        part = draw_layer(NAME, budget, lines, seed=seed)
        held.append((part, own, scores[lines] if budget.balance == "row" else scores[:, lines]))
    for step in (3, 4):
        moves, (change,) = update(layer, tensors, scores, options, prune_rate=prune_rate, step=step)
        their_moves, changes = update(None, None, None, options, prune_rate=prune_rate, step=step, parts=held)
        assert torch.equal(torch.cat([part.columns for part, _, _ in held]), layer.columns)
        assert torch.equal(torch.cat([part.explored for part, _, _ in held]), layer.explored)
        for name, whole_tensor in vars(tensors).items():
            assert torch.equal(torch.cat([getattr(own, name) for _, own, _ in held]), whole_tensor), name
        for name, count in vars(change).items():
            assert sum(getattr(each, name) for each in changes) == count, name
        for name in ("dropped", "grown"):
            assert torch.equal(torch.cat([getattr(move, name) for move in their_moves]), getattr(moves[0], name))


@settings(max_examples=60, deadline=None)
@given(budgets(), SETTINGS, RATES, st.integers(0, 50))
def test_counts_slots_and_reports(budget, options, prune_rate, seed):
    options = section(**options)
    layer = whole(budget, seed)
    tensors, scores = tensors_of(layer, seed), scores_of(budget, gradient_of(budget, seed))
    addresses = [t.data_ptr() for t in (*vars(tensors).values(), layer.columns)]
    for step in range(3):
        before, table, values = layer.ids().clone(), layer.active(), tensors.values.clone()
        (move,), (change,) = update(layer, tensors, scores, options, prune_rate=prune_rate, step=step)
        ensure_sound(layer)
        after = layer.ids()
        stays = torch.isin(before, after)
        assert torch.equal(after[stays], before[stays]), "a block left its slot"
        assert torch.equal(move.dropped, before[~stays]) and torch.equal(move.grown, after[~stays])
        assert torch.equal(tensors.values[move.kept], values[move.kept])
        assert not tensors.values[~move.kept].any() and not tensors.first_moment[~move.kept].any()
        assert not tensors.average[~move.kept].any() and not tensors.gradient[~move.kept].any()
        assert bool((stays | ~move.kept).all())
        gone = int((table & ~layer.active()).sum())
        assert change.dropped == change.grown == gone and change.active == budget.active
        assert change.explored == int(layer.explored.sum()) and change.units == budget.units
    assert addresses == [t.data_ptr() for t in (*vars(tensors).values(), layer.columns)], "nothing is allocated anew"


def test_a_layer_drops_as_many_as_asked_though_a_line_has_few():
    """3 blocks a line at .01: rounding up in every line would drop a third of the layer."""
    budget = budget_of(64, 16, 3)
    layer = whole(budget)
    scores = scores_of(budget, gradient_of(budget))
    options = section(just_dropped="exclude")
    seen = torch.zeros(64, dtype=torch.bool)
    for step in range(40):
        _, (change,) = update(layer, tensors_of(layer, step), scores, options, prune_rate=0.01, step=step)
        assert change.dropped == 2
        seen |= layer.explored.sum(1) > 3
    assert int(seen.sum()) > 30, "lines take turns"
    _, (change,) = update(layer, tensors_of(layer), scores, options, prune_rate=0.5)
    assert change.dropped == 96


def test_settings_that_need_what_blocks_do_not_have_are_refused():
    for options, words in (
        ({"grow": "momentum"}, "grow: momentum is not possible with sparsity.balance: line"),
        ({"grown_moments": "warm"}, "moments of blocks that are not active; set mean or zero"),
        ({"density_schedule": "cosine"}, "density_schedule: cosine"),
        ({"unit": 1}, "set 16, 32, 64 or 128"),
    ):
        with pytest.raises(ValueError, match=words):
            ensure_possible(section(**options))
    layer = whole(budget_of(3, 4, 2))
    norms = block_norms(tensors_of(layer).values)
    ask = {"prune_rate": 0.5, "seed": 0, "step": 0}
    with pytest.raises(ValueError, match="gradient needs scores"):
        choose_blocks(layer, norms, None, sparsity=section(), **ask)
    with pytest.raises(ValueError, match="random takes no scores"):
        choose_blocks(layer, norms, torch.ones(3, 4), sparsity=section(grow="random"), **ask)
    with pytest.raises(ValueError, match=r"scores of blocks are \[4, 3\], \[3, 4\] expected"):
        choose_blocks(layer, norms, torch.ones(4, 3), sparsity=section(), **ask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_block_norms(dtype):
    generator = torch.Generator().manual_seed(0)
    for unit in (16, 64, 128):
        values = torch.randn(5, 3, unit, unit, generator=generator) * torch.logspace(-30, 18, 15).view(5, 3, 1, 1)
        values[0, 0] = 0.0
        values = values.to(dtype)
        norms = block_norms(values)
        torch.testing.assert_close(norms, values.double().flatten(2).norm(dim=2).float(), rtol=1.2e-7, atol=0)
        assert float(norms[0, 0]) == 0.0
        for line in range(5):  # the same bits alone
            assert torch.equal(block_norms(values[line : line + 1]), norms[line : line + 1])
        order = torch.randperm(unit * unit, generator=generator)
        assert torch.equal(block_norms(values.flatten(2)[..., order].view_as(values)), norms), "order of the weights"
    values[1, 1, 3, 4], values[2, 0, 0, 0] = math.nan, math.inf
    assert block_norms(values).isnan().nonzero().tolist() == [[1, 1], [2, 0]]


def test_block_norms_are_those_of_the_masked_backend():
    budget = budget_of(32, 24, 24, unit=16)
    masked = empty_layer(
        NAME, budget.as_layer_budget(), Held(torch.arange(512), torch.arange(384), 384)
    )  # fmt: skip
    weight = torch.randn(budget.shape, generator=torch.Generator().manual_seed(3))
    theirs = unit_values([masked], [weight], None)[0].view(32, 24)
    # Both are rounded from far more digits; a last bit may differ once in a million.
    assert torch.equal(scores_of(budget, weight), theirs)
