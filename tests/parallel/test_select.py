"""Radix selection against a sort, on one process and split over real ranks."""

import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.counter_random import distinct32
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.sparsity.scores import code
from tests.gloo import run_ranks

SPECIAL = [0.0, 1e-45, 1e-39, 1.0, 1.0, 2.0, 3.4e38, float("inf"), 0.5, 0.25]


def reference(values: torch.Tensor, candidates: torch.Tensor, wanted: int) -> torch.Tensor:
    """The wanted largest candidates by (value, tie number): one sort."""
    order = sorted(
        torch.nonzero(candidates).view(-1).tolist(),
        key=lambda i: (float(values[i]), int(distinct32(9, torch.tensor([i])))),
        reverse=True,
    )
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[order[:wanted]] = True
    return chosen


def pool(values: torch.Tensor, candidates: torch.Tensor, wanted: int, offset: int = 0, name: str = "layer") -> Pool:
    codes = code(values.view(torch.int32), candidates)
    return Pool(name, codes, lambda positions: distinct32(9, positions + offset), wanted)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_a_sort(data):
    values = torch.tensor(
        data.draw(st.lists(st.sampled_from(SPECIAL) | st.floats(0, 2.0**100, width=32), min_size=1, max_size=60)),
        dtype=torch.float32,
    )
    candidates = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    wanted = data.draw(st.integers(0, int(candidates.sum())))
    (found,) = select_largest([pool(values, candidates, wanted)], None)
    assert torch.equal(found, reference(values, candidates, wanted))


def test_more_than_one_chunk_and_all_equal():
    values = torch.full((150_001,), 0.25)
    candidates = torch.ones(150_001, dtype=torch.bool)
    (found,) = select_largest([pool(values, candidates, 70_000)], None)
    numbers = distinct32(9, torch.arange(150_001))
    assert int(found.sum()) == 70_000
    assert numbers[found].min() > numbers[~found].max()


def test_too_few_candidates_names_layer_and_counts():
    values, candidates = torch.ones(5), torch.tensor([True, False, True, False, False])
    try:
        select_largest([pool(values, candidates, 3, name="heads.1.output.weight")], None)
    except ValueError as error:
        assert str(error) == "heads.1.output.weight: 3 units wanted, but only 2 candidates"
    else:
        raise AssertionError("three of two candidates were found")


CUTS = {1: [0, 1000], 2: [0, 333, 1000], 3: [0, 0, 999, 1000], 4: [0, 250, 251, 700, 1000]}


def _select_part(rank: int, world: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    layers = [
        torch.rand(1000, generator=generator),
        torch.rand(1000, generator=generator).mul(4).round(),
        torch.zeros(1000),
    ]
    candidates = torch.rand(1000, generator=generator) < 0.8
    start, stop = CUTS[world][rank], CUTS[world][rank + 1]
    pools = [
        pool(values[start:stop].clone(), candidates[start:stop], wanted, start, f"layer {wanted}")
        for values, wanted in zip(layers, (100, 300, 555), strict=True)
    ]
    return select_largest(pools, dist.group.WORLD)


def test_same_choice_on_any_number_of_ranks_with_uneven_and_empty_parts():
    results = {
        world: [torch.cat(parts) for parts in zip(*run_ranks(_select_part, world), strict=True)] for world in CUTS
    }
    for world in CUTS:
        for found, alone, wanted in zip(results[world], results[1], (100, 300, 555), strict=True):
            assert int(found.sum()) == wanted
            assert torch.equal(found, alone), world


VALUES = st.lists(st.sampled_from(SPECIAL) | st.floats(0, width=32, allow_nan=False), min_size=1, max_size=40)


def _property_on_ranks(rank: int, world: int) -> int:
    """Every rank draws the same examples, so all fail on the same one and shrink it together."""
    examples = 0

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def equals_a_sort(data):
        nonlocal examples
        examples += 1
        pools, expected = [], []
        for layer in range(data.draw(st.integers(1, 3))):
            values = torch.tensor(data.draw(VALUES), dtype=torch.float32)
            candidates = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
            count = int(candidates.sum())
            wanted = data.draw(st.sampled_from([0, count]) | st.integers(0, count))
            inner = st.lists(st.integers(0, len(values)), min_size=world - 1, max_size=world - 1)
            cuts = [0, *sorted(data.draw(inner)), len(values)]
            part = slice(cuts[rank], cuts[rank + 1])
            pools.append(pool(values[part].clone(), candidates[part], wanted, part.start, f"layer {layer}"))
            expected.append(reference(values, candidates, wanted))
        for found, whole in zip(select_largest(pools, dist.group.WORLD), expected, strict=True):
            parts: list[torch.Tensor] = [torch.empty(0)] * world
            dist.all_gather_object(parts, found)
            assert torch.equal(torch.cat(parts), whole)

    equals_a_sort()
    return examples


def test_equals_a_sort_however_layers_are_cut_over_ranks():
    drawn = run_ranks(_property_on_ranks, 3, timeout=120)
    assert drawn[0] >= 150 and len(set(drawn)) == 1
