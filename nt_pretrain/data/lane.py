"""The documents of one lane of one source, in the order of a run, with what cannot be read left out and reported."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.faults import WHOLE_SHARD, Fault
from nt_pretrain.data.order import MASK, Order
from nt_pretrain.data.text import Cursor

Content = TypeVar("Content")


@dataclass
class Reading:
    """What one reader process does and meets, shared by its lanes.

    Args:
        at: told the source, shard and document that is begun now, for whoever watches this reader.
        alive: told that what was begun still comes.
    """

    at: Callable[[int, int, int], None] = lambda source, shard, document: None
    alive: Callable[[], None] = lambda: None
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, words: str) -> None:
        """Something that was mended, such as a read that was tried again; also by the thread that fetches ahead."""
        self.met(Fault(kind, words))

    def met(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def take(self) -> list[Fault]:
        """Faults since the last call."""
        with self._lock:
            taken, self._faults = self._faults, []
        return taken


class Lane:
    """Lane ``number`` of source number ``source``.

    Args:
        most_masked: documents of an epoch of the source that may be lost at most; more end the run.
    """

    def __init__(
        self, source: int, name: str, split: Split, order: Order, number: int, reading: Reading, most_masked: int
    ) -> None:
        self._source, self._name, self._split, self._order, self._number = source, name, split, order, number
        self._reading, self._most_masked, self._masked = reading, most_masked, 0
        self._documents = order.lane_documents(number)
        self._window = (-1, -1)
        self._read: tuple[Cursor, int] = Cursor(-1), 0

    def document(
        self, cursor: Cursor, read: Callable[[int, int], Content], instead: Callable[[BadInput], Content]
    ) -> Content:
        """``read(shard, document)`` of the document under ``cursor``; what ``instead`` gives if it cannot be read.

        Raises:
            DataError: the document cannot be read, and no more may be lost.
        """
        shard, document, mark = self._order.marked(cursor.epoch, self._number, cursor.document)
        self._read = cursor, mark
        self._reading.at(self._source, shard, document)
        if self._split.is_remote:
            self._look_ahead(cursor)
        try:
            return read(shard, document)
        except BadInput as error:
            self._masked += 1
            if self._masked > self._most_masked:
                raise DataError(
                    f"{error}\nAt most {self._most_masked:,} of the {self._split.manifest.documents:,} documents of "
                    f"{self._split.location} may be lost in an epoch (data.max_bad_fraction)."
                ) from None
            name = self._split.manifest.shards[shard].name
            where = document if error.of_document else WHOLE_SHARD
            self._reading.met(Fault(error.kind, str(error), 1, self._name, name, where, cursor.epoch))
            return instead(error)

    def following(self, cursor: Cursor) -> Cursor:
        """The beginning of the next document, in the next epoch after the last.

        Raises:
            DataError: an epoch ends in which not every document came exactly once.
        """
        # As a rule it was read just before.
        known = self._read[0] is cursor
        mark = self._read[1] if known else self._order.marked(cursor.epoch, self._number, cursor.document)[2]
        digest = (cursor.digest + mark) & MASK
        if cursor.document + 1 < self._documents:
            return Cursor(cursor.epoch, cursor.document + 1, 0, digest)
        expected = self._order.lane_digest(cursor.epoch, self._number)
        if digest != expected:
            raise DataError(
                f"lane {self._number} of {self._split.location} has not read every document of epoch {cursor.epoch} "
                f"exactly once (digest {digest:016x}, expected {expected:016x}). This is a fault of this program or of "
                "its checkpoint; please report it"
            )
        if self._masked == self._documents:
            raise DataError(
                f"not one of the {self._documents:,} documents of lane {self._number} of {self._split.location} could "
                f"be read in epoch {cursor.epoch}; there is nothing to train on"
            )
        self._masked = 0
        return Cursor(cursor.epoch + 1)

    def _look_ahead(self, cursor: Cursor) -> None:
        """At the beginning of a window, have the shards of the next one fetched."""
        window = cursor.epoch, cursor.document // self._order.window
        if window != self._window:
            self._window = window
            last = (window[1] + 1) * self._order.window >= self._documents
            ahead = (window[0] + 1, 0) if last else (window[0], window[1] + 1)
            for shard in self._order.shards_of_window(ahead[0], self._number, ahead[1]):
                self._split.fetch_ahead(shard)


def carried_over(order: Order, lane: int, cursor: Cursor) -> Cursor:
    """A cursor of other data or another order, as it goes on in this one: at the same document of its epoch.

    Its digest becomes that of the documents before it here, so that the rest of the epoch can be checked as ever.
    """
    document = min(cursor.document, order.lane_documents(lane) - 1)
    return Cursor(cursor.epoch, document, 0, order.digest_before(cursor.epoch, lane, document))
