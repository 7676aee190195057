"""Invariants of one drop-and-grow on one process; tests/parallel has the same over many ranks."""

import math

import pytest
import torch

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.sparsity.budget import LayerBudget, plan_budgets
from nt_pretrain.sparsity.scores import code
from nt_pretrain.sparsity.topology import Held, SparseLayer, empty_layer
from nt_pretrain.sparsity.update import LayerTensors, draw, layer_digests, update

NAME = "trunk.blocks.0.ffn.up.weight"


def make(shape=(192, 128), *, seed=0, **options) -> tuple[SparseLayer, LayerTensors, SparsitySection]:
    section = SparsitySection(**{"density": 0.5, "distribution": "uniform"} | options)
    budget = plan_budgets({NAME: shape}, section)[NAME]
    layer = empty_layer(NAME, budget, Held(torch.arange(shape[0]), torch.arange(shape[1]), shape[1]))
    draw([layer], seed=seed, group=None)
    generator = torch.Generator().manual_seed(seed + 1)
    active = layer.elements(layer.active).view(shape)
    weight, first, second = (torch.randn(shape, generator=generator) * active for _ in range(3))
    return layer, LayerTensors(weight, torch.randn(shape, generator=generator), first, second.abs()), section


def step(layer, tensors, section, *, prune_rate=0.3, step=10, target: LayerBudget | None = None):
    targets = {NAME: target or layer.budget}
    return update(
        [layer],
        {NAME: tensors},
        sparsity=section,
        targets=targets,
        prune_rate=prune_rate,
        seed=0,
        step=step,
        group=None,
    )[NAME]


def test_first_topology_is_exact_and_depends_on_seed_and_name_only():
    layer, _, _ = make()
    assert int(layer.active.sum()) == layer.budget.active == 192 * 128 // 2
    again, _, _ = make()
    other, _, _ = make(seed=1)
    assert torch.equal(layer.active, again.active) and not torch.equal(layer.active, other.active)
    rows = layer.active.view(192, 128).float().mean(1)
    assert float(rows.min()) > 0.3 and float(rows.max()) < 0.7  # spread evenly, no positional bias


@pytest.mark.parametrize("unit", [1, 16])
@pytest.mark.parametrize("drop", ["magnitude", "soft_magnitude"])
@pytest.mark.parametrize(("grow", "share"), [("gradient", 0.0), ("random", 0.0), ("gradient", 0.4)])
@pytest.mark.parametrize("just_dropped", ["keep", "zero", "exclude"])
def test_counts_stay_exact_and_inactive_values_are_zero(unit, drop, grow, share, just_dropped):
    layer, tensors, section = make(
        unit=unit, drop=drop, grow=grow, grow_random_share=share, just_dropped=just_dropped
    )  # fmt: skip
    before = layer.active.clone()
    for number in range(3):
        change = step(layer, tensors, section, step=number)
        assert int(layer.active.sum()) == layer.budget.active == change.active
        assert change.dropped == change.grown
        inactive = ~layer.elements(layer.active).view(192, 128)
        for values in (tensors.weight, tensors.first_moment, tensors.second_moment):
            assert not values[inactive].any()
    assert int((before ^ layer.active).sum()) > 0
    assert bool((layer.explored | ~before).all()), "explored forgets nothing"


def test_hard_drop_and_gradient_growth_take_exactly_the_right_weights():
    layer, tensors, section = make(just_dropped="exclude")
    weight, gradient, before = tensors.weight.clone(), tensors.gradient, layer.active.view(192, 128).clone()
    count = math.ceil(0.3 * layer.budget.active)
    step(layer, tensors, section)
    after = layer.active.view(192, 128)
    dropped = before & ~after
    grown = after & ~before
    assert weight[dropped].abs().max() <= weight[before & after].abs().min()
    assert gradient[grown].abs().min() >= gradient[~before & ~after].abs().max()
    assert int(dropped.sum()) == int(grown.sum()) == count


def test_growth_never_picks_an_active_unit_even_when_all_gradients_are_zero():
    layer, tensors, section = make()
    tensors.gradient.zero_()
    change = step(layer, tensors, section)
    assert change.active == layer.budget.active == int(layer.active.sum())
    rows = layer.active.view(192, 128).float().mean(1)
    assert float(rows.min()) > 0.3, "ties are filled in a random order, not by position"


def test_values_of_units_that_stay_return_or_are_new():
    for option, value_kept in (("keep", True), ("zero", False)):
        layer, tensors, section = make(just_dropped=option)
        weight, before = tensors.weight.clone(), layer.active.clone()
        # Make every weak active weight win its place back.
        tensors.gradient.copy_(torch.where(weight == 0, 1e-6, 1.0) * (1 + torch.rand(192, 128)))
        change = step(layer, tensors, section)
        assert change.grown == 0 and torch.equal(layer.active, before)
        returned = (tensors.weight == 0).view(-1) & before
        assert (int(returned.sum()) == 0) is value_kept
        if not value_kept:
            assert int(returned.sum()) == math.ceil(0.3 * layer.budget.active)


def test_moments_of_grown_units():
    expected = {"mean": "mean", "zero": 0.0}
    for option in expected:
        layer, tensors, section = make(grown_moments=option, just_dropped="exclude")
        before, second = layer.active.clone(), tensors.second_moment.clone().view(-1)
        step(layer, tensors, section)
        grown, kept = layer.active & ~before, layer.active & before
        assert not tensors.weight.view(-1)[grown].any() and not tensors.first_moment.view(-1)[grown].any()
        found = tensors.second_moment.view(-1)[grown]
        wanted = float(second[kept].double().mean()) if option == "mean" else 0.0
        torch.testing.assert_close(found, torch.full_like(found, wanted))
        assert torch.equal(tensors.second_moment.view(-1)[kept], second[kept])
    layer, tensors, section = make(grown_moments="warm")
    tensors.second_moment.fill_(2.0)
    step(layer, tensors, section)
    assert bool((tensors.second_moment == 2.0).all()), "warm moments are left alone"


@pytest.mark.parametrize("option", ["mean", "zero", "warm"])
def test_sgd_has_one_moment_and_grown_units_start_without_or_warm(option):
    layer, tensors, section = make(grown_moments=option, just_dropped="exclude")
    tensors.second_moment = None
    tensors.first_moment.fill_(3.0)
    before = layer.active.clone()
    step(layer, tensors, section)
    grown, kept = layer.active & ~before, layer.active & before
    assert bool((tensors.first_moment.view(-1)[grown] == (3.0 if option == "warm" else 0.0)).all()) and bool(
        grown.any()
    )
    assert bool((tensors.first_moment.view(-1)[kept] == 3.0).all())


def test_a_dense_layer_is_left_alone_bit_for_bit():
    layer, tensors, section = make(density=1.0)
    copies = [t.clone() for t in (tensors.weight, tensors.first_moment, tensors.second_moment)]
    change = step(layer, tensors, section, prune_rate=0.5)
    assert (change.dropped, change.grown, change.active) == (0, 0, 192 * 128)
    for before, after in zip(copies, (tensors.weight, tensors.first_moment, tensors.second_moment), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("density", "rate", "turnover"), [(0.796, 0.5, 0.170), (0.5895, 0.5, 0.291), (0.9103, 0.5, 0.0823)]
)
def test_turnover_for_independent_gradients(density, rate, turnover):
    """rho (1 - d) / ((1 - d) + rho d) of the active weights are replaced when just-dropped ones may return."""
    layer, tensors, section = make((512, 512), density=density)
    change = step(layer, tensors, section, prune_rate=rate)
    assert change.grown / change.active == pytest.approx(turnover, abs=0.004)


def test_density_falls_to_the_target_of_the_schedule():
    layer, tensors, section = make()
    for active in (9000, 5000, 4999):
        target = LayerBudget((192, 128), 1, 192 * 128, active)
        change = step(layer, tensors, section, prune_rate=0.01, target=target)
        assert change.active == active == int(layer.active.sum())


def test_soft_drop_keeps_the_share_that_successive_sampling_keeps():
    """|N(0, 1)| weights, T = 3, rho = .5: 12.7 % of the lower half survive, nearly all of the top decile do."""
    layer, tensors, section = make((1024, 512), density=0.999, drop="soft_magnitude", temperature=3.0, grow="random")
    section = section.model_copy(update={"just_dropped": "zero"})
    layer, tensors, _ = make((1024, 512), density=0.5, drop="soft_magnitude")
    weight, before = tensors.weight.abs().view(-1).clone(), layer.active.clone()
    tensors.gradient.copy_((~before).view(1024, 512) * 1.0)  # nothing dropped comes back
    step(layer, tensors, section.model_copy(update={"density": 0.5, "grow": "gradient"}), prune_rate=0.5)
    active = weight[before]
    median, decile = active.median(), active.quantile(0.9)
    lower = before & (weight < median)
    top = before & (weight > decile)
    assert float((layer.active & lower).sum() / lower.sum()) == pytest.approx(0.127, abs=0.005)
    assert float((layer.active & top).sum() / top.sum()) > 0.9995


def test_soft_drop_at_high_temperature_is_hard_and_at_zero_uniform():
    results = {}
    for temperature in (1e-6, 60.0):
        layer, tensors, section = make(drop="soft_magnitude", temperature=temperature)
        weight, before = tensors.weight.abs().view(-1).clone(), layer.active.clone()
        tensors.gradient.copy_((~before).view(192, 128) * 1.0)
        step(layer, tensors, section, prune_rate=0.5)
        stayed = before & layer.active
        lower = before & (weight < weight[before].median())
        results[temperature] = float((stayed & lower).sum() / lower.sum())
    assert results[60.0] < 0.05
    assert results[1e-6] == pytest.approx(0.5, abs=0.02)


def test_digest_tells_topologies_apart():
    first, _, _ = make()
    second, _, _ = make()
    assert layer_digests([first], None) == layer_digests([second], None)
    position = int(second.active.nonzero()[0])
    free = int((~second.active).nonzero()[0])
    second.active[position], second.active[free] = False, True
    assert layer_digests([first], None) != layer_digests([second], None)
    blocks, _, _ = make(unit=16)
    assert layer_digests([blocks], None) != layer_digests([first], None)


def test_every_pattern_of_nan_sorts_above_infinity():
    """CUDA's own nan has all bits set but the sign's: one more would be negative."""
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800000, 0], dtype=torch.int32)
    codes = code(bits, torch.ones(4, dtype=torch.bool))
    assert codes[0] > codes[1] > codes[2] > codes[3] == 1
