"""Documents of one lane to training sequences, with a cursor from which reading can go on at any token.

Packed: documents, each closed by an end-of-document token, follow each other in one line of tokens. A sequence is T + 1
tokens, inputs and targets shifted by one; the next sequence starts with the last token of this one, so that every token
but the very first of a lane is predicted exactly once.

Truncated (the paper's mode): one document a sequence, cut to T tokens, closed by the end-of-document token, padded.

A document that cannot be read comes as so many tokens LOST as it has, or none where nobody knows: packed, they stand in
the line as padding, so that whatever follows stays where it was; truncated, it is a sequence of padding. Padding is no
target, no loss and no count sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

PADDING = -1
"""Document number of padding."""
LOST = -1
"""Token of a document that could not be read; all of its tokens are."""


class Cursor(NamedTuple):
    """Where a lane of a source stands: its next sequence starts at token ``offset`` of document ``document`` of
    ``epoch``. ``digest`` is the sum modulo 2**64 of the marks of the documents before it in this epoch.
    """

    epoch: int = 0
    document: int = 0
    offset: int = 0
    digest: int = 0


class Sequence(NamedTuple):
    """T + 1 token numbers and the number of each token's document inside the sequence (int32), and what comes next."""

    tokens: np.ndarray
    documents: np.ndarray
    after: Cursor


Read = Callable[[Cursor], np.ndarray]
"""The tokens (of any integer type) of the document in which a cursor lies, the closing one included; its offset does
not matter."""
Following = Callable[[Cursor], Cursor]
"""From a cursor to the beginning of the document after its own, in the next epoch after the last one."""


def packed(read: Read, following: Following, cursor: Cursor, length: int) -> Iterator[Sequence]:
    """Packed sequences of ``length`` + 1 tokens from ``cursor`` on; the lane runs on into the next epoch."""
    tokens, whole = read(cursor), length + 1
    offset = min(cursor.offset, len(tokens))  # beyond it lies only what has become unreadable since
    while True:
        # Filled in place: parts put together at the end take 1.3 to 1.7 times as long.
        line, numbers = np.empty(whole, dtype=np.int32), np.zeros(whole, dtype=np.int32)
        filled = number = 0
        while (end := filled + len(tokens) - offset) < whole:
            line[filled:end] = tokens[offset:]
            if number or (end > filled and line[filled] == LOST):
                numbers[filled:end] = _number(line, filled, end, number)
            filled, number, offset = end, number + 1, 0
            cursor = following(cursor)
            tokens = read(cursor)
        stop = offset + whole - filled
        line[filled:] = tokens[offset:stop]
        numbers[filled:] = _number(line, filled, whole, number)
        # The next sequence starts with this one's last token, which lies in the present document.
        offset = stop - 1
        yield Sequence(line, numbers, Cursor(cursor.epoch, cursor.document, offset, cursor.digest))


def truncated(read: Read, following: Following, cursor: Cursor, length: int) -> Iterator[Sequence]:
    """Sequences of one document each, cut to ``length`` tokens plus the closing one, padded with token 0."""
    while True:
        whole = read(cursor)
        if len(whole) and whole[0] == LOST:
            whole = whole[:0]
        kept = np.concatenate([whole[:length], whole[-1:]]) if len(whole) > length else whole
        tokens = np.zeros(length + 1, dtype=np.int32)
        numbers = np.full(length + 1, PADDING, dtype=np.int32)
        tokens[: len(kept)] = kept
        numbers[: len(kept)] = 0
        cursor = following(cursor)
        yield Sequence(tokens, numbers, cursor)


def _number(line: np.ndarray, start: int, stop: int, number: int) -> int:
    """The document number of a piece of a line; lost tokens become padding."""
    if line[start] != LOST:
        return number
    line[start:stop] = 0
    return PADDING
