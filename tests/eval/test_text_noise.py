"""Typing errors: by rate, by counter, and each of its kind."""

import itertools
from collections import Counter

import pytest

from nt_pretrain.eval.text_noise import KINDS, RATES, with_typing_errors

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 60


def test_each_kind_does_what_it_says():
    swapped, dropped, inserted = (with_typing_errors(TEXT, kind, 0.1, seed=1, sample=0) for kind in KINDS)
    assert Counter(swapped) == Counter(TEXT) and swapped != TEXT
    assert len(TEXT) - len(dropped) == pytest.approx(0.1 * len(TEXT), rel=0.2)
    assert len(inserted) - len(TEXT) == pytest.approx(0.1 * len(TEXT), rel=0.2)
    remaining = iter(inserted)
    assert all(character in remaining for character in TEXT), "nothing of the text is lost"


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_counters(kind: str) -> None:
    assert with_typing_errors(TEXT, kind, 0.0, seed=1, sample=0) == TEXT
    assert with_typing_errors("", kind, 0.5, seed=1, sample=0) == ""
    first = with_typing_errors(TEXT, kind, 0.1, seed=1, sample="a")
    assert with_typing_errors(TEXT, kind, 0.1, seed=1, sample="a") == first
    assert with_typing_errors(TEXT, kind, 0.1, seed=1, sample="b") != first
    assert with_typing_errors(TEXT, kind, 0.1, seed=2, sample="a") != first


def test_everything_hit():
    assert with_typing_errors("abcde", "swap", 1.0, seed=1, sample=0) == "badce"
    assert with_typing_errors("abcde", "drop", 1.0, seed=1, sample=0) == ""
    assert with_typing_errors("abcde", "insert", 1.0, seed=1, sample=0)[1::2] == "abcde"


def test_higher_rates_keep_the_errors_of_lower_ones():
    kept = [with_typing_errors(TEXT, "drop", rate, seed=1, sample=0) for rate in RATES]
    for more, less in itertools.pairwise(kept):
        remaining = iter(more)
        assert len(less) < len(more) and all(character in remaining for character in less)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="of kind 'typo' are not known; choose one of swap, drop, insert"):
        with_typing_errors("a", "typo", 0.1, seed=1, sample=0)
    with pytest.raises(ValueError, match=r"rate 1\.5"):
        with_typing_errors("a", "swap", 1.5, seed=1, sample=0)
