"""Validation sequences whose characters are counted, of a text as it is or with every document disturbed.

A disturbed text has another number of tokens, so the loss of a token no longer compares; the loss of a character does.
A sequence of disturbed text is made of the same documents, cut where the undisturbed sequences end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.text import LOST, PADDING, Cursor, Sequence, packed, truncated
from nt_pretrain.data.tokenizer import Tokenizer

Disturb = Callable[[str, str], str]
"""From a document's text and its name, SHARD/NUMBER, to what is read in its place."""
Line = tuple[np.ndarray, np.ndarray]
"""Tokens of a document and, for each, how many characters it spells; int32."""


@dataclass(frozen=True)
class Counted:
    """A sequence and how many characters of the text each of its T + 1 tokens spells (int32)."""

    sequence: Sequence
    spelled: np.ndarray

    @property
    def characters(self) -> int:
        """Spelled by the sequence's targets, which are all tokens but the first and padding."""
        return int(self.spelled[1:][self.sequence.documents[1:] != PADDING].sum())


class _AllRead(Exception):
    """Every document was read once."""


def spelled_by(tokenizer: Tokenizer, text: str) -> Line:
    """Tokens of ``text`` without a closing one, and the characters (code points) each spells.

    A character of several byte pieces counts with the last of them; the blank that a tokenizer puts before a text
    spells nothing.
    """
    found = tokenizer.processor.encode(text, return_type="offset_mapping")
    ends = np.array([end for _, end in found["offsets"]], dtype=np.int32)
    return np.array(found["ids"], dtype=np.int32), np.diff(ends, prepend=np.int32(0))


def counted_sequences(
    split: Split, *, packing: str, length: int, count: int = 0, disturb: Disturb | None = None
) -> list[Counted]:
    """The first ``count`` whole sequences of a split of text (0: all), in the order of the shards.

    With ``disturb`` those of the text that these sequences cover, disturbed: packed, as many as its tokens fill, the
    last one filled up with padding; truncated, one for each of the same documents.

    Raises:
        DataError: the split holds tokens, or a document cannot be read.
    """
    if split.manifest.format != "text":
        raise DataError(
            f"{split.location} holds tokens, and characters can be disturbed and counted in text only; set data.path "
            "to the same documents prepared as text (launch/prepare.py text without --tokenizer)"
        )
    places = [(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]

    def clean(document: int) -> Line:
        if document == len(places):
            raise _AllRead
        return _closed(split, places[document], split.text(*places[document]))

    found = _made(clean, packing, length, count)
    if disturb is None or not found:
        return found
    after, change = found[-1].sequence.after, disturb
    whole = after.document + (packing == "pack" and after.offset == len(clean(after.document)[0]) - 1)

    def changed(document: int) -> Line:
        text = split.text(*places[document])
        name = f"{split.manifest.shards[places[document][0]].name}/{places[document][1]}"
        if document < whole:
            return _closed(split, places[document], change(text, name))
        # The document in which the undisturbed sequences end, up to the last character they cover.
        covered = int(clean(document)[1][: after.offset + 1].sum())
        return _spelled(split, places[document], change(text[:covered], name))

    if packing == "truncate":
        return _made(changed, packing, length, len(found))
    last = whole if whole > after.document else after.document + 1
    # Tokens that are LOST stand as padding behind the text, so that its last tokens fill a sequence too.
    tail = np.full(length + 1, LOST, np.int32), np.zeros(length + 1, np.int32)

    def with_tail(document: int) -> Line:
        if document > last:
            raise _AllRead
        return tail if document == last else changed(document)

    made = _made(with_tail, packing, length, 0)
    return [each for each in made if (each.sequence.documents[1:] != PADDING).any()]


def _made(line: Callable[[int], Line], packing: str, length: int, count: int) -> list[Counted]:
    """Sequences of the documents that ``line`` reads by number until it raises :class:`_AllRead`."""
    kept: dict[int, Line] = {}

    def part(cursor: Cursor, which: int) -> np.ndarray:
        # Each document is read twice, first for its tokens: then it may go.
        if which == 0:
            kept[cursor.document] = line(cursor.document)
            return kept[cursor.document][0]
        return kept.pop(cursor.document)[1]

    def following(cursor: Cursor) -> Cursor:
        return Cursor(0, cursor.document + 1)

    make = packed if packing == "pack" else truncated
    found: list[Counted] = []
    tokens = make(lambda cursor: part(cursor, 0), following, Cursor(), length)
    spelled = make(lambda cursor: part(cursor, 1), following, Cursor(), length)
    try:
        for sequence, counts in zip(tokens, spelled, strict=True):
            found.append(Counted(sequence, counts.tokens))
            if len(found) == count:
                break
    except _AllRead:
        pass
    return found


def _closed(split: Split, place: tuple[int, int], text: str) -> Line:
    assert split.tokenizer is not None
    tokens, spelled = _spelled(split, place, text)
    return np.append(tokens, np.int32(split.tokenizer.end)), np.append(spelled, np.int32(0))


def _spelled(split: Split, place: tuple[int, int], text: str) -> Line:
    assert split.tokenizer is not None
    try:
        return spelled_by(split.tokenizer, text)
    except RuntimeError as error:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
        where = f"{split.location}/{split.manifest.shards[place[0]].name}: document {place[1]}"
        raise BadInput("not a row", f"{where}: it cannot be tokenized: {error}", of_document=True) from None
