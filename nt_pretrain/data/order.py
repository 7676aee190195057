"""Which document comes when: a pure function of (seed, epoch, lane, position), without any generator state.

Each epoch permutes the shards, lays their documents end to end, cuts the line into lanes of equal length (to within one
document) and permutes windows of documents inside a lane. Lanes are read in parallel and never depend on the number of
ranks or reader processes that serve them. A permutation sorts indices by a hash of them, so any part of the order is
known without what came before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

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


@dataclass
class Order:
    """Order of the documents of a corpus.

    Args:
        shard_sizes: documents of each shard, in the order of the manifest.
        lanes: parallel streams.
        window: documents permuted together inside a lane.
    """

    shard_sizes: list[int]
    seed: int
    lanes: int
    window: int
    _epoch: int = field(default=-1, init=False)
    _shards: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64), init=False)
    _ends: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64), init=False)
    _windows: dict[int, tuple[int, int, np.ndarray]] = field(default_factory=dict, init=False)

    def lane_bounds(self, lane: int) -> tuple[int, int]:
        """First and last-plus-one document of ``lane`` in the line of an epoch; the same in every epoch."""
        total = sum(self.shard_sizes)
        return total * lane // self.lanes, total * (lane + 1) // self.lanes

    def document(self, epoch: int, lane: int, position: int) -> tuple[int, int]:
        """(shard, document in it) at ``position`` of ``lane`` in ``epoch``."""
        first, stop = self.lane_bounds(lane)
        number, inside = divmod(position, self.window)
        known = self._windows.get(lane)
        if known is None or known[:2] != (epoch, number):
            length = min(self.window, stop - first - number * self.window)
            known = epoch, number, permutation(length, self.seed, "window", epoch, lane, number)
            self._windows[lane] = known
        if epoch != self._epoch:
            self._shards = permutation(len(self.shard_sizes), self.seed, "shards", epoch)
            self._ends = np.cumsum(np.asarray(self.shard_sizes, dtype=np.int64)[self._shards])
            self._epoch = epoch
        place = first + number * self.window + int(known[2][inside])
        slot = int(np.searchsorted(self._ends, place, side="right"))
        shard = int(self._shards[slot])
        return shard, place - (int(self._ends[slot]) - self.shard_sizes[shard])
