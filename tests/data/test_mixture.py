"""A mixture keeps its shares to the last sequence of every window, whatever step one asks for first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.data.mixture import WINDOW, Mixture, phases_of, thousandths

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 1000.0), min_size=1, max_size=6)


@given(WEIGHTS)
def test_shares_add_up_and_are_near_the_weights(weights: dict[str, float]) -> None:
    shares = thousandths(weights)
    assert sum(shares.values()) == WINDOW
    total = sum(weights.values())
    assert all(abs(shares[name] - weight / total * WINDOW) < 1.0 + 1e-6 for name, weight in weights.items())


def test_simple_shares_are_exact() -> None:
    assert thousandths({"a": 0.7, "b": 0.2, "c": 0.1}) == {"a": 700, "b": 200, "c": 100}
    assert thousandths({"a": 1, "b": 1, "c": 1}) == {"a": 334, "b": 333, "c": 333}


def slots(mixture: Mixture, first: int, last: int) -> list[int]:
    """Sources of all sequences of steps ``first`` to ``last``."""
    return [mixture.source(step, place) for step in range(first, last + 1) for place in range(mixture.global_batch)]


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.sampled_from([1, 8, 40, 250, 1000]), st.integers(0, 5))
def test_every_window_holds_each_source_exactly_as_often_as_its_share(
    weights: dict[str, float], batch: int, seed: int
) -> None:
    names = tuple(weights)
    mixture = Mixture(names, phases_of(names, weights, {}), seed, batch)
    found = slots(mixture, 1, 3 * WINDOW // batch)
    shares = {names.index(name): count for name, count in thousandths(weights).items() if count}
    for start in range(0, 3 * WINDOW, WINDOW):
        assert Counter(found[start : start + WINDOW]) == shares


def test_a_curriculum_changes_shares_at_its_steps() -> None:
    names = ("web", "books", "code")
    phases = phases_of(names, {"web": 1.0}, {101: {"web": 1.0, "books": 1.0}, 201: {"code": 3.0, "books": 1.0}})
    mixture = Mixture(names, phases, 0, 20)
    assert Counter(slots(mixture, 1, 100)) == {0: 2000}
    for first in (101, 151):
        assert Counter(slots(mixture, first, first + 49)) == {0: 500, 1: 500}
    assert Counter(slots(mixture, 201, 250)) == {2: 750, 1: 250}


def test_sequences_are_mixed_and_not_in_rows() -> None:
    mixture = Mixture(("a", "b"), phases_of(("a", "b"), {"a": 1.0, "b": 1.0}, {}), 0, 10)
    found = slots(mixture, 1, 100)
    longest = max(len(run) for run in "".join(map(str, found)).replace("01", "0 1").replace("10", "1 0").split())
    assert longest < 20
    assert found != slots(Mixture(mixture.names, mixture.phases, 1, 10), 1, 100)


@given(st.permutations(range(1, 30)))
def test_any_step_is_known_without_the_others(steps: list[int]) -> None:
    phases = phases_of(("a", "b"), {"a": 1.0, "b": 2.0}, {10: {"a": 5.0, "b": 2.0}})
    mixture = Mixture(("a", "b"), phases, 0, 100)
    asked = {step: slots(mixture, step, step) for step in steps}
    assert [asked[step] for step in range(1, 30)] == [slots(mixture, step, step) for step in range(1, 30)]


def test_the_mixture_is_the_same_for_ever() -> None:
    """Runs go on in it: other values here mean that no older run can."""
    mixture = Mixture(("a", "b", "c"), phases_of(("a", "b", "c"), {"a": 2.0, "b": 1.0, "c": 1.0}, {}), 0, 12)
    assert slots(mixture, 1, 1) == [1, 2, 0, 2, 2, 0, 2, 0, 1, 0, 0, 0]
