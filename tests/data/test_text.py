"""Packing loses no token and can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.data.text import PADDING, Cursor, Following, Read, Sequence, packed, truncated

END = 3
DOCUMENTS = st.lists(st.lists(st.integers(4, 99), max_size=30), min_size=1, max_size=8)


def reader(documents: list[list[int]]) -> tuple[Read, Following]:
    """Reads documents, and goes on to the next one and the next epoch. The digest counts documents here."""

    def following(cursor: Cursor) -> Cursor:
        last = cursor.document + 1 == len(documents)
        return Cursor(cursor.epoch + 1) if last else Cursor(cursor.epoch, cursor.document + 1, 0, cursor.digest + 1)

    return lambda cursor: np.array([*documents[cursor.document], END], dtype=np.int32), following


def epochs(documents: list[list[int]], count: int) -> list[int]:
    """The line of tokens of so many epochs."""
    return [token for _ in range(count) for document in documents for token in [*document, END]]


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20), st.integers(1, 30))
def test_every_token_is_predicted_exactly_once(documents: list[list[int]], length: int, count: int) -> None:
    found = list(islice(packed(*reader(documents), Cursor(), length), count))
    line = epochs(documents, count * length // len(epochs(documents, 1)) + 2)
    targets = [int(token) for sequence in found for token in sequence.tokens[1:]]
    inputs = [int(token) for sequence in found for token in sequence.tokens[:-1]]
    assert targets == line[1 : 1 + count * length]
    assert inputs == line[: count * length], "each is the input of the next one's prediction"


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20), st.integers(1, 10))
def test_document_numbers_change_after_each_end(documents: list[list[int]], length: int, count: int) -> None:
    for sequence in islice(packed(*reader(documents), Cursor(), length), count):
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
    unbroken = make(*reader(documents), Cursor(), length)
    last = list(islice(unbroken, stop))[-1]
    assert same(unbroken, make(*reader(documents), last.after, length), 8)


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 20))
def test_truncated_takes_one_document_a_sequence(documents: list[list[int]], length: int) -> None:
    found = list(islice(truncated(*reader(documents), Cursor(), length), 2 * len(documents)))
    for document, sequence in zip(documents + documents, found, strict=True):
        kept = [*document[:length], END]
        assert sequence.tokens.tolist() == kept + [0] * (length + 1 - len(kept))
        assert sequence.documents.tolist() == [0] * len(kept) + [PADDING] * (length + 1 - len(kept))
    assert found[len(documents) - 1].after == Cursor(1, 0, 0)


@settings(deadline=None)
@given(DOCUMENTS, st.sets(st.integers(0, 7)), st.integers(1, 20))
def test_a_document_that_cannot_be_read_leaves_no_trace(documents: list[list[int]], bad: set[int], length: int) -> None:
    good = [document for number, document in enumerate(documents) if number not in bad]
    if not good:
        return
    read, following = reader(documents)

    def masked(cursor: Cursor) -> np.ndarray:
        return np.empty(0, np.int32) if cursor.document in bad else read(cursor)

    for one, two in islice(
        zip(packed(masked, following, Cursor(), length), packed(*reader(good), Cursor(), length), strict=False), 8
    ):
        assert one.tokens.tolist() == two.tokens.tolist()
    for number, sequence in enumerate(islice(truncated(masked, following, Cursor(), length), len(documents))):
        assert (sequence.documents == PADDING).all() == (number in bad)


def test_going_on_inside_a_document_that_has_become_unreadable() -> None:
    _, following = reader([[5, 6, 7, 8], [9, 10, 11, 12]])
    read = lambda cursor: np.array([], np.int32) if cursor.document == 0 else np.array([9, 10, 11, 12, END], np.int32)  # noqa: E731
    sequence = next(packed(read, following, Cursor(0, 0, 2), 3))
    assert sequence.tokens.tolist() == [9, 10, 11, 12]
    assert sequence.after == Cursor(0, 1, 3, 1)
