"""Topologies of single weights in slots against the masked backend: the same sets, values and moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.parallel.candidates import Choice, candidates
from nt_pretrain.parallel.single import draw_layers, gathered_slots
from nt_pretrain.sparsity import csr_update
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_topology import CsrLayer, ensure_possible, layer_of_ids, part
from nt_pretrain.sparsity.csr_update import CsrTensors
from nt_pretrain.sparsity.topology import Held, SparseLayer, digest, empty_layer
from nt_pretrain.sparsity.update import LayerTensors, draw, update
from tests.gloo import run_ranks

NAMES = ("heads.0.blocks.0.ffn.up.weight", "heads.0.blocks.0.ffn.gate.weight", "trunk.embedding.weight", "full.weight")
KINDS = ("weight", "first_moment", "second_moment", "average")
SETTINGS = st.fixed_dictionaries(
    {
        "drop": st.sampled_from(["magnitude", "soft_magnitude"]),
        "grow": st.sampled_from(["gradient", "random"]),
        "grow_random_share": st.sampled_from([0.0, 0.3, 1.0]),
        "just_dropped": st.sampled_from(["keep", "zero", "exclude"]),
        "grown_moments": st.sampled_from(["mean", "zero"]),
    }
)


def budgets_of(seed: int) -> dict[str, LayerBudget]:
    """Layers of several shapes; the last one is full, the one before has rows of which some ranks hold none."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((int(torch.randint(1, 30, (), generator=generator)), 11), (8, 17), (4, 5), (3, 4))
    shares = torch.rand(4, generator=generator).tolist()
    found = {}
    for name, shape, share in zip(NAMES, shapes, shares, strict=True):
        units = shape[0] * shape[1]
        active = units if name == "full.weight" else max(1, int(share * units))
        found[name] = LayerBudget(shape, 1, units, active)
    return found


def masked_layers(budgets: dict[str, LayerBudget], seed: int) -> list[SparseLayer]:
    layers = [
        empty_layer(name, x, Held(torch.arange(x.shape[0]), torch.arange(x.shape[1]), x.shape[1]))
        for name, x in budgets.items()
    ]
    draw(layers, seed=seed, group=None)
    return layers


def dense_values(budget: LayerBudget, seed: int, *, ties: bool) -> dict[str, Tensor]:
    """Weight, moments, average and gradient as dense matrices; with ``ties`` small whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(budget.shape, generator=generator) for name in (*KINDS, "gradient")}
    if ties:
        for name in ("weight", "gradient"):
            found[name] = torch.randint(-2, 3, budget.shape, generator=generator).float()
    found["second_moment"].square_()
    return found


def masked_run(options: SparsitySection, seed: int, rate: float, steps: int, ties: bool) -> list[dict[str, object]]:
    """What the masked backend makes of each layer at each of ``steps`` updates."""
    budgets = budgets_of(seed)
    layers = masked_layers(budgets, seed)
    history = [{layer.name: (layer.active.clone(), {}, None, digest(layer)) for layer in layers}]
    for step in range(steps):
        tensors = {}
        for layer in layers:
            dense = dense_values(layer.budget, seed + 17 * step, ties=ties)
            for kind in KINDS:
                dense[kind].mul_(layer.active.view(layer.budget.shape))
            tensors[layer.name] = LayerTensors(**dense)
        told = update(
            layers, tensors, sparsity=options, targets=budgets, prune_rate=rate, seed=seed, step=step, group=None
        )  # fmt: skip
        history.append(
            {
                layer.name: (
                    layer.active.clone(),
                    {kind: masked(getattr(tensors[layer.name], kind), layer) for kind in (*KINDS, "gradient")},
                    told[layer.name],
                    digest(layer),
                )
                for layer in layers
            }
        )
    return history


def masked(dense: Tensor, layer: SparseLayer) -> Tensor:
    return dense * layer.active.view(layer.budget.shape)


def csr_run(rank: int, world: int, options: SparsitySection, seed: int, rate: float, steps: int, ties: bool):
    """The same of slots, as dense matrices."""
    group = torch.distributed.group.WORLD if world > 1 else None
    budgets = budgets_of(seed)
    layers = draw_layers(budgets, seed=seed, group=group)
    history = [{name: (mask_of(layer), {}, None, layer.digest()) for name, layer in layers.items()}]
    slot_ids = []
    for step in range(steps):
        choice = Choice(options, rate, seed, step)
        held, may_grow = {}, {}
        for name, layer in layers.items():
            dense = dense_values(layer.budget, seed + 17 * step, ties=ties)
            slots = part(layer.budget.active, world, rank)
            own = layer.ids[slots.start : slots.stop]
            # Two-dimensional, as parameters are.
            held[name] = CsrTensors(*(dense[kind].view(-1)[own][:, None] for kind in (*KINDS, "gradient")))
            if options.grow != "random":
                rows = part(layer.budget.shape[0], world, rank)
                assert rows == layer.rows
                may_grow[name] = candidates(layer, dense["gradient"][rows.start : rows.stop], choice)
        before = {name: layer.ids.clone() for name, layer in layers.items()}
        told = csr_update.update(list(layers.values()), held, may_grow, choice, group)
        found = {}
        for name, layer in layers.items():
            tensors = {}
            for kind in (*KINDS, *(["gradient"] if options.grow != "random" else [])):
                flat = getattr(held[name], "values" if kind == "weight" else kind).view(-1)
                (every,) = gathered_slots([flat], [layer.budget.active], group)
                tensors[kind] = torch.zeros(layer.budget.shape).view(-1).index_copy(0, layer.ids, every)
            found[name] = (mask_of(layer), tensors, told[name], layer.digest())
            stayed = torch.isin(before[name], layer.ids)
            assert torch.equal(before[name][stayed], layer.ids[stayed]), "a weight left its slot"
        history.append(found)
        slot_ids.append({name: layer.ids.clone() for name, layer in layers.items()})
    return history, slot_ids


def mask_of(layer: CsrLayer) -> Tensor:
    flags = torch.zeros(layer.budget.units, dtype=torch.bool).index_fill(0, layer.ids, True)
    assert int(flags.sum()) == layer.budget.active
    return flags


def ensure_same(theirs_by_step, ours_by_step) -> None:
    for step, (ours, theirs) in enumerate(zip(ours_by_step, theirs_by_step, strict=True)):
        for name, (active, tensors, told, number) in theirs.items():
            found_active, found_tensors, found_told, found_number = ours[name]
            assert torch.equal(found_active, active), (step, name)
            assert found_number == number and found_told == told, (step, name)
            for kind, tensor in found_tensors.items():
                assert torch.equal(tensor, tensors[kind].view(-1)), (step, name, kind)


@settings(max_examples=60, deadline=None)
@given(SETTINGS, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 200), st.booleans())
def test_the_masked_backends_topologies_values_and_moments(options, rate, seed, ties):
    options = SparsitySection(density=0.5, **options)
    ours, _ = csr_run(0, 1, options, seed, rate, 3, ties)
    ensure_same(masked_run(options, seed, rate, 3, ties), ours)


CASES = [
    ({"grow_random_share": 0.3}, 0.5, 1, True),
    ({"drop": "soft_magnitude", "just_dropped": "zero"}, 0.4, 2, False),
    ({"grow": "random", "grown_moments": "zero", "just_dropped": "exclude"}, 0.3, 3, True),
    ({"drop": "soft_magnitude", "grow_random_share": 1.0}, 0.2, 4, True),
]


def _all_cases(rank: int, world: int):
    return [csr_run(rank, world, SparsitySection(density=0.5, **o), seed, rate, 3, t) for o, rate, seed, t in CASES]


@pytest.fixture(scope="module")
def alone():
    return _all_cases(0, 1)


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_on_several_ranks(world, alone):
    by_rank = run_ranks(_all_cases, world)
    for at, (options, rate, seed, ties) in enumerate(CASES):
        expected = masked_run(SparsitySection(density=0.5, **options), seed, rate, 3, ties)
        for results in by_rank:
            history, slot_ids = results[at]
            ensure_same(expected, history)
            for ours, theirs in zip(slot_ids, alone[at][1], strict=True):
                assert all(torch.equal(ours[name], theirs[name]) for name in NAMES), "slots depend on the ranks"


def test_momentum_of_sgd_and_no_average():
    budget = LayerBudget((6, 7), 1, 42, 20)
    layers = draw_layers({"a": budget}, seed=0, group=None)
    held = {"a": CsrTensors(torch.arange(20.0), torch.ones(20))}
    choice = Choice(SparsitySection(density=0.5, grow="random", just_dropped="exclude"), 0.25, 0, 1)
    told = csr_update.update(list(layers.values()), held, {}, choice, None)["a"]
    assert told.dropped == told.grown == 5 and held["a"].first_moment.tolist() == [0.0] * 5 + [1.0] * 15


def test_explored_counts_what_was_ever_active_whatever_the_rows():
    budget = LayerBudget((5, 19), 1, 95, 30)
    numbers = torch.randperm(95, generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(95, dtype=torch.bool)
    layers = [layer_of_ids("a", budget, numbers[:30], part(5, 3, rank)) for rank in range(3)]
    for start in (0, 20, 60):
        ids = numbers[start : start + 30]
        seen[ids] = True
        for layer in layers:
            layer.remember(ids)
        assert sum(layer.explored_count() for layer in layers) == int(seen.sum())


def test_what_is_not_possible_is_told():
    for options, words in (
        ({"unit": 16}, "unit: 16 is not possible with the block backend: slots hold single weights"),
        ({"grow": "momentum"}, "grow: momentum is not possible"),
        ({"grown_moments": "warm"}, "moments of weights that are not active; set mean or zero"),
        ({"density_schedule": "cosine"}, "density_schedule: cosine"),
    ):
        with pytest.raises(ValueError, match=words):
            ensure_possible(SparsitySection(density=0.5, **options))
    budget = LayerBudget((3, 4), 1, 12, 5)
    with pytest.raises(ValueError, match=r"numbers of weights are \[4\], the budget has 5"):
        layer_of_ids("a", budget, torch.arange(4), range(3))
    with pytest.raises(ValueError, match=r"shape \[3, 4, 1, 1\] is no matrix"):
        layer_of_ids("a", LayerBudget((3, 4, 1, 1), 1, 12, 5), torch.arange(5), range(3))
    layer = layer_of_ids("a", budget, torch.arange(5), range(1, 3))
    with pytest.raises(ValueError, match=r"are \[3, 4\], \[2, 4\] expected"):
        candidates(layer, torch.zeros(3, 4), Choice(SparsitySection(density=0.5), 0.5, 0, 0))
    with pytest.raises(ValueError, match="a: 4 values are held here, 5 expected"):
        choice = Choice(SparsitySection(density=0.5, grow="random"), 0.5, 0, 0)
        csr_update.update([layer], {"a": CsrTensors(torch.zeros(4), torch.zeros(4))}, {}, choice, None)
