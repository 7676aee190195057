"""Which document comes when: a pure function of (seed, epoch, lane, position), without any generator state.

Each epoch permutes the shards, lays their documents end to end, cuts the line into lanes of equal length (to within one
document) and permutes windows of documents inside a lane. Lanes are read in parallel and never depend on the number of
ranks or reader processes that serve them. A permutation sorts indices by a hash of them, so any part of the order is
known without what came before.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def permutation(count: int, *key: object) -> np.ndarray:
    """A permutation of ``range(count)`` (int64) that is a function of ``count`` and ``key`` on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x = np.arange(count, dtype=np.uint64) * _GOLDEN + np.uint64(int.from_bytes(digest[:8], "little") & _MASK)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return np.argsort(x, kind="stable")


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
        self._documents = int(self._sizes.sum())
        assert 1 <= lanes <= self._documents, f"{lanes} lanes, {self._documents} documents"
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[int, tuple[int, int, np.ndarray]] = {}

    def lane_bounds(self, lane: int) -> tuple[int, int]:
        """First and last-plus-one document of ``lane`` in the line of an epoch; the same in every epoch."""
        return self._documents * lane // self.lanes, self._documents * (lane + 1) // self.lanes

    def lane_documents(self, lane: int) -> int:
        first, stop = self.lane_bounds(lane)
        return stop - first

    def document(self, epoch: int, lane: int, position: int) -> tuple[int, int]:
        """(shard, document in it) at ``position`` of ``lane`` in ``epoch``."""
        first, stop = self.lane_bounds(lane)
        number, inside = divmod(position, self.window)
        known = self._windows.get(lane)
        if known is None or known[:2] != (epoch, number):
            length = min(self.window, stop - first - number * self.window)
            known = epoch, number, permutation(length, self._seed, "window", epoch, lane, number)
            self._windows[lane] = known
        shards, ends = self._line(epoch)
        place = first + number * self.window + int(known[2][inside])
        slot = int(np.searchsorted(ends, place, side="right"))
        shard = int(shards[slot])
        return shard, place - (int(ends[slot]) - int(self._sizes[shard]))

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards of an epoch in their order, and the number of documents up to the end of each."""
        if epoch not in self._epochs:
            # Lanes end an epoch at different times, so two are in use at once; more are never needed for long.
            while len(self._epochs) >= 4:
                self._epochs.pop(min(self._epochs))
            shards = permutation(len(self._sizes), self._seed, "shards", epoch)
            self._epochs[epoch] = shards, np.cumsum(self._sizes[shards])
        return self._epochs[epoch]
