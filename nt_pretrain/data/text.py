"""Documents of one lane to training sequences, with a cursor from which reading can go on at any token.

Packed: documents, each closed by an end-of-document token, follow each other in one line of tokens. A sequence is T + 1
tokens, inputs and targets shifted by one; the next sequence starts with the last token of this one, so that every token
but the very first of a lane is predicted exactly once.

Truncated (the paper's mode): one document a sequence, cut to T tokens, closed by the end-of-document token, padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

PADDING = -1
"""Document number of padding."""


@dataclass(frozen=True)
class Cursor:
    """Where a lane stands: its next sequence starts at token ``offset`` of document ``document`` of ``epoch``."""

    epoch: int = 0
    document: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Sequence:
    """T + 1 token numbers and the number of each token's document inside the sequence (int32), and what comes next."""

    tokens: np.ndarray
    documents: np.ndarray
    after: Cursor


Read = Callable[[int, int], np.ndarray]
"""(epoch, position in the lane) to the document's tokens, the closing one included."""


def packed(read: Read, documents_of_lane: int, cursor: Cursor, length: int) -> Iterator[Sequence]:
    """Endless packed sequences of ``length`` + 1 tokens from ``cursor`` on; the lane runs on into the next epoch."""
    epoch, document, offset = cursor.epoch, cursor.document, cursor.offset
    tokens = read(epoch, document)
    while True:
        parts: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        missing = length + 1
        while missing:
            piece = tokens[offset : offset + missing]
            parts.append(piece)
            numbers.append(np.full(len(piece), len(numbers), dtype=np.int32))
            missing -= len(piece)
            offset += len(piece)
            if missing:
                document, offset = document + 1, 0
                if document == documents_of_lane:
                    epoch, document = epoch + 1, 0
                tokens = read(epoch, document)
        # The next sequence starts with this one's last token, which lies in the present document.
        offset -= 1
        after = Cursor(epoch, document, offset)
        yield Sequence(np.concatenate(parts), np.concatenate(numbers), after)


def truncated(read: Read, documents_of_lane: int, cursor: Cursor, length: int) -> Iterator[Sequence]:
    """Endless sequences of one document each, cut to ``length`` tokens plus the closing one, padded with token 0."""
    epoch, document = cursor.epoch, cursor.document
    while True:
        whole = read(epoch, document)
        kept = np.concatenate([whole[:length], whole[-1:]]) if len(whole) > length else whole
        tokens = np.zeros(length + 1, dtype=np.int32)
        numbers = np.full(length + 1, PADDING, dtype=np.int32)
        tokens[: len(kept)] = kept
        numbers[: len(kept)] = 0
        document += 1
        if document == documents_of_lane:
            epoch, document = epoch + 1, 0
        yield Sequence(tokens, numbers, Cursor(epoch, document, 0))
