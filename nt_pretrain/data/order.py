"""Which document comes when: a pure function of (seed, epoch, lane, position), without any generator state.

Each epoch permutes the shards, lays their documents end to end, cuts the line into lanes of equal length (to within one
document) and permutes windows of documents inside a lane. Lanes are read in parallel and never depend on the number of
ranks or reader processes that serve them. A permutation sorts indices by a hash of them, so any part of the order is
known without what came before.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = (1 << 64) - 1
"""Digests are sums modulo 2**64."""
CHUNK = 1 << 15
"""Documents digested at once: their temporaries stay in the core's cache."""


def permutation(count: int, *key: object) -> np.ndarray:
    """A permutation of ``range(count)`` (int64) that is a function of ``count`` and ``key`` on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x = np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
        x += np.uint64(int.from_bytes(digest[:8], "little") & MASK)
        return np.argsort(_mixed(x), kind="stable")


def _mixed(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser (Steele, Lea, Flood, OOPSLA 2014) of uint64 values, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    return x


@dataclass(frozen=True)
class _Line:
    """Shards of an epoch in their order; the number of documents up to the end of each, and before each."""

    shards: np.ndarray
    ends: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class _Window:
    """Shard, document and mark of each place of a window; Python's own arrays, since numpy's are slow to index."""

    epoch: int
    number: int
    shards: array[int]
    documents: array[int]
    marks: array[int]


class Order:
    """Order of the documents of a corpus.

    Args:
        shard_sizes: documents of each shard, in the order of the manifest.
        seed: another one gives another order.
        lanes: parallel streams, at most as many as documents.
        window: documents permuted together inside a lane.
    """

    def __init__(self, shard_sizes: list[int], seed: int, lanes: int, window: int) -> None:
        self.lanes, self.window = lanes, window
        self._sizes, self._seed = np.asarray(shard_sizes, dtype=np.int64), seed
        self._before = np.cumsum(self._sizes) - self._sizes
        self._documents = int(self._sizes.sum())
        assert 1 <= lanes <= self._documents, f"{lanes} lanes, {self._documents} documents"
        self._epochs: dict[int, _Line] = {}
        self._windows: dict[int, _Window] = {}

    def lane_bounds(self, lane: int) -> tuple[int, int]:
        """First and last-plus-one document of ``lane`` in the line of an epoch; the same in every epoch."""
        return self._documents * lane // self.lanes, self._documents * (lane + 1) // self.lanes

    def lane_documents(self, lane: int) -> int:
        first, stop = self.lane_bounds(lane)
        return stop - first

    def document(self, epoch: int, lane: int, position: int) -> tuple[int, int]:
        """(shard, document in it) at ``position`` of ``lane`` in ``epoch``."""
        return self.marked(epoch, lane, position)[:2]

    def marked(self, epoch: int, lane: int, position: int) -> tuple[int, int, int]:
        """As :meth:`document`, with the mark of the document: splitmix64 of its place in the manifest's order."""
        number, inside = divmod(position, self.window)
        window = self._windows.get(lane)
        if window is None or window.number != number or window.epoch != epoch:
            window = self._windows[lane] = self._window(epoch, lane, number)
        return window.shards[inside], window.documents[inside], window.marks[inside]

    def shards_of_window(self, epoch: int, lane: int, number: int) -> list[int]:
        """Shards that window ``number`` of a lane reads from, in the order of the epoch; none after its last window."""
        first, stop = self.lane_bounds(lane)
        start, end = first + number * self.window, min(first + (number + 1) * self.window, stop)
        if start >= end:
            return []
        line = self._line(epoch)
        low, high = np.searchsorted(line.ends, [start, end - 1], side="right")
        return [int(shard) for shard in line.shards[low : high + 1] if self._sizes[shard]]

    def lane_digest(self, epoch: int, lane: int) -> int:
        """Sum modulo 2**64 of the marks of all documents of a lane in an epoch.

        Who has read the lane and added up the marks of what came has read each document once if the sums agree.
        """
        return self._digest(epoch, *self.lane_bounds(lane))

    def digest_before(self, epoch: int, lane: int, position: int) -> int:
        """Sum modulo 2**64 of the marks of the documents of a lane before ``position``."""
        first, _ = self.lane_bounds(lane)
        whole = position // self.window * self.window  # of whole windows, in which order does not matter
        rest = sum(self.marked(epoch, lane, each)[2] for each in range(whole, position))
        return (self._digest(epoch, first, first + whole) + rest) & MASK

    def _digest(self, epoch: int, first: int, stop: int) -> int:
        """Sum modulo 2**64 of the marks of the documents that stand from ``first`` to ``stop`` in the line."""
        line = self._line(epoch)
        # From a place in the line to the number: a difference for each shard.
        difference = self._before[line.shards] - line.starts
        total = 0
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
            for start in range(first, stop, CHUNK):
                end = min(start + CHUNK, stop)
                low, high = np.searchsorted(line.ends, [start, end - 1], side="right")
                slots = slice(low, high + 1)
                counts = np.minimum(line.ends[slots], end) - np.maximum(line.starts[slots], start)
                numbers = np.arange(start, end) + np.repeat(difference[slots], counts)
                total += int(_mixed(numbers.astype(np.uint64) + np.uint64(_GOLDEN)).sum())
        return total & MASK

    def _window(self, epoch: int, lane: int, number: int) -> _Window:
        first, stop = self.lane_bounds(lane)
        start = first + number * self.window
        places = start + permutation(min(self.window, stop - start), self._seed, "window", epoch, lane, number)
        line = self._line(epoch)
        slots = np.searchsorted(line.ends, places, side="right")
        shards, documents = line.shards[slots], places - line.starts[slots]
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
            marks = _mixed((self._before[shards] + documents).astype(np.uint64) + np.uint64(_GOLDEN))
        columns = array("q", shards.tobytes()), array("q", documents.tobytes()), array("Q", marks.tobytes())
        return _Window(epoch, number, *columns)

    def _line(self, epoch: int) -> _Line:
        if epoch not in self._epochs:
            # Lanes end an epoch at different times, so two are in use at once; more are never needed for long.
            while len(self._epochs) >= 4:
                self._epochs.pop(min(self._epochs))
            shards = permutation(len(self._sizes), self._seed, "shards", epoch)
            ends = np.cumsum(self._sizes[shards])
            self._epochs[epoch] = _Line(shards, ends, ends - self._sizes[shards])
        return self._epochs[epoch]
