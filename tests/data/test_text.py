"""Packing loses no token and can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.data.text import PADDING, Cursor, Read, Sequence, packed, truncated

END = 3
DOCUMENTS = st.lists(st.lists(st.integers(4, 99), max_size=30), min_size=1, max_size=8)


def reader(documents: list[list[int]]) -> Read:
    return lambda epoch, position: np.array([*documents[position], END], dtype=np.int32)


def epochs(documents: list[list[int]], count: int) -> list[int]:
    """The line of tokens of so many epochs."""
    return [token for _ in range(count) for document in documents for token in [*document, END]]


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20), st.integers(1, 30))
def test_every_token_is_predicted_exactly_once(documents: list[list[int]], length: int, count: int) -> None:
    found = list(islice(packed(reader(documents), len(documents), Cursor(), length), count))
    line = epochs(documents, count * length // len(epochs(documents, 1)) + 2)
    targets = [int(token) for sequence in found for token in sequence.tokens[1:]]
    inputs = [int(token) for sequence in found for token in sequence.tokens[:-1]]
    assert targets == line[1 : 1 + count * length]
    assert inputs == line[: count * length], "each is the input of the next one's prediction"


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20), st.integers(1, 10))
def test_document_numbers_change_after_each_end(documents: list[list[int]], length: int, count: int) -> None:
    for sequence in islice(packed(reader(documents), len(documents), Cursor(), length), count):
        ends_before = np.concatenate([[0], np.cumsum(sequence.tokens == END)[:-1]])
        assert (sequence.documents == ends_before).all()
        assert sequence.tokens.dtype == sequence.documents.dtype == np.int32
        assert len(sequence.tokens) == length + 1


def same(left: Iterator[Sequence], right: Iterator[Sequence], count: int) -> bool:
    return all(
        (a.tokens == b.tokens).all() and (a.documents == b.documents).all() and a.after == b.after
        for a, b in islice(zip(left, right, strict=False), count)
    )


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20), st.integers(1, 12), st.booleans())
def test_going_on_from_a_cursor_changes_nothing(documents: list[list[int]], length: int, stop: int, pack: bool) -> None:
    make = packed if pack else truncated
    unbroken = make(reader(documents), len(documents), Cursor(), length)
    last = list(islice(unbroken, stop))[-1]
    assert same(unbroken, make(reader(documents), len(documents), last.after, length), 8)


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20))
def test_truncated_takes_one_document_a_sequence(documents: list[list[int]], length: int) -> None:
    found = list(islice(truncated(reader(documents), len(documents), Cursor(), length), 2 * len(documents)))
    for document, sequence in zip(documents + documents, found, strict=True):
        kept = [*document[:length], END]
        assert sequence.tokens.tolist() == kept + [0] * (length + 1 - len(kept))
        assert sequence.documents.tolist() == [0] * len(kept) + [PADDING] * (length + 1 - len(kept))
    assert found[len(documents) - 1].after == Cursor(1, 0, 0)
