"""Which weights a child moves and by what: exact counts, disjoint parts, functions of a key and numbers."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.methods.mutation import Child, Mutation, moved, mutation_problems

INDEX = torch.arange(1000)


def test_places_are_exact_and_static_parts_meet() -> None:
    dynamic = Mutation(0, 0.3, 0.1)
    assert dynamic.places(Child(2, 7), 1005) == (0, round(100.5))
    static = Mutation(0, 0.3, 1 / 7, "static")
    ends = [static.places(Child(0, number), 1005) for number in range(7)]
    assert [first for first, _ in ends] == [0, *(last for _, last in ends[:-1])] and ends[-1][1] == 1005
    assert {last - first for first, last in ends} <= {143, 144}
    assert static.places(Child(0, 7), 1005) == ends[0]


def test_the_order_is_anothers_for_every_child_only_where_it_is_dynamic() -> None:
    everything = torch.ones(1000, dtype=torch.bool)
    for scheme, alike in (("dynamic", False), ("static", True)):
        mutation = Mutation(5, 0.3, 0.1, scheme)  # type: ignore[arg-type]
        first = mutation.codes(Child(0, 0), "a", INDEX, everything)
        for child in (Child(0, 1), Child(1, 0)):
            assert first.equal(mutation.codes(child, "a", INDEX, everything)) is alike
        assert not first.equal(mutation.codes(Child(0, 0), "b", INDEX, everything))
        assert not first.equal(Mutation(6, 0.3, 0.1, scheme).codes(Child(0, 0), "a", INDEX, everything))  # type: ignore[arg-type]


def test_who_computes_them_with_which_neighbours_changes_nothing() -> None:
    mutation, some = Mutation(5, 0.3, 0.1), torch.tensor([3, 500, 999])
    candidates = INDEX % 2 == 1
    whole = mutation.codes(Child(0, 4), "a", INDEX, candidates)
    assert whole[some].equal(mutation.codes(Child(0, 4), "a", some, candidates[some]))
    assert not whole[~candidates].any() and (whole[candidates] > 0).all()
    assert mutation.noise(Child(0, 4), "a", INDEX)[some].equal(mutation.noise(Child(0, 4), "a", some))
    assert mutation.tie_breaker(Child(0, 4), "a", INDEX).unique().numel() == 1000


def test_noise_is_normal_and_each_childs_own() -> None:
    mutation, index = Mutation(5, 0.3, 0.1, "static"), torch.arange(20_000)
    a, b = (mutation.noise(Child(0, number), "a", index) for number in (0, 10))
    assert abs(float(a.mean())) < 0.03 and abs(float(a.std()) - 1) < 0.03
    assert abs(float((a * b).mean())) < 0.03


def test_no_noise_leaves_the_very_bits() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        assert moved(values.to(dtype), torch.ones(100, dtype=torch.float64), 0.0).equal(values.to(dtype))


@pytest.mark.parametrize(
    ("mutation", "words"),
    [
        (Mutation(0, -1.0, 0.1), "--sigma"),
        (Mutation(0, math.nan, 0.1), "--sigma"),
        (Mutation(0, 1.0, 0.0), "--density"),
        (Mutation(0, 1.0, 0.3, "static"), "1/3"),
    ],
)
def test_what_cannot_be_meant_is_told(mutation: Mutation, words: str) -> None:
    (line,) = mutation_problems(mutation)
    assert words in line
    assert not mutation_problems(Mutation(0, 0.0, 0.3333, "static")) and not mutation_problems(Mutation(0, 1.0, 0.3))
