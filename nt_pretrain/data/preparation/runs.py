"""Sorts more rows than memory holds, in many processes: runs of sorted rows on disk, of which any range can be read.

A run is one file: the rows in the order of their keys, the first 8 bytes of each key, the rest of each key with the
row's offset and size, and a footer. Rows of equal keys stay in the order they came: inside a run, and from run to run.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nt_pretrain.data.files import whole_file

KEY_BYTES = 24
RUN_BYTES = 256_000_000
"""Rows held in memory before they are written."""
_HEAD = np.dtype("<u8")
_TAIL = np.dtype([("key", "<u8", (2,)), ("offset", "<u8"), ("size", "<u8")])
_FOOTER = struct.Struct("<QQ")
_ROW_COST = 150
"""Bytes of memory that a row takes beside its content."""


class RunWriter:
    """Sorts the rows of several splits into runs ``folder/STEM-NNNNNN.SPLIT``.

    Attributes:
        runs: names of the runs written of each split, in the order of their rows.
        totals: (rows, bytes) of each split.
    """

    def __init__(self, folder: Path, stem: str, splits: Sequence[str]) -> None:
        self.runs: dict[str, list[str]] = {split: [] for split in splits}
        self.totals: dict[str, list[int]] = {split: [0, 0] for split in splits}
        self._folder, self._stem = folder, stem
        self._held: dict[str, tuple[list[bytes], list[bytes]]] = {split: ([], []) for split in splits}
        self._size = 0

    def add(self, split: str, key: bytes, row: bytes) -> None:
        """Take a row with a key of 24 evenly spread bytes."""
        assert len(key) == KEY_BYTES, f"a key has {KEY_BYTES} bytes, not {len(key)}"
        keys, rows = self._held[split]
        keys.append(key)
        rows.append(row)
        self.totals[split][0] += 1
        self.totals[split][1] += len(row)
        self._size += len(row) + _ROW_COST
        if self._size > RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        for split, (keys, rows) in self._held.items():
            if rows:
                name = f"{self._stem}-{len(self.runs[split]):06d}.{split}"
                _write(self._folder / name, keys, rows)
                self.runs[split].append(name)
                keys.clear()
                rows.clear()
        self._size = 0


def _write(path: Path, keys: list[bytes], rows: list[bytes]) -> None:
    numbers = np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 3)
    order = np.lexsort((numbers[:, 2], numbers[:, 1], numbers[:, 0]))
    tails = np.empty(len(rows), dtype=_TAIL)
    sizes = np.array([len(row) for row in rows], dtype=np.uint64)[order]
    tails["key"] = numbers[order, 1:]
    tails["size"] = sizes
    tails["offset"] = np.cumsum(sizes) - sizes
    with whole_file(path) as file:
        for place in order:
            file.write(rows[place])
        file.write(numbers[order, 0].astype(_HEAD).tobytes())
        file.write(tails.tobytes())
        file.write(_FOOTER.pack(len(rows), int(sizes.sum())))


def bounds_of(ranges: int) -> list[int]:
    """Where equal ranges of a key's first 8 bytes begin, and where the last ends."""
    return [-(-(number << 64) // ranges) for number in range(ranges + 1)]


def rows_in_ranges(run: Path, bounds: Sequence[int]) -> np.ndarray:
    """Rows of a run (int64) in each of the ranges."""
    with run.open("rb") as file:
        count, start = _footer(file.fileno())
        heads = np.fromfile(file, _HEAD, count, offset=start)
    return np.diff(np.searchsorted(heads, np.array(bounds[:-1], dtype=_HEAD)), append=count)


def rows_between(runs: Sequence[Path], low: int, high: int) -> list[bytes]:
    """Rows of all runs with ``low`` <= first 8 bytes of the key < ``high``, by key; those of one key in the order of
    the runs."""
    heads, tails, rows = [], [], []
    for run in runs:
        descriptor = os.open(run, os.O_RDONLY)
        try:
            found = _read(descriptor, low, high)
        finally:
            os.close(descriptor)
        heads.append(found[0])
        tails.append(found[1])
        rows += found[2]
    if not rows:
        return []
    keys = np.concatenate(tails)["key"]
    order = np.lexsort((keys[:, 1], keys[:, 0], np.concatenate(heads)))
    return [rows[place] for place in order]


def _read(run: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    count, heads_start = _footer(run)
    first, last = (_before(run, count, heads_start, bound) for bound in (low, high))
    tails_start = heads_start + count * _HEAD.itemsize
    heads = np.frombuffer(
        os.pread(run, (last - first) * _HEAD.itemsize, heads_start + first * _HEAD.itemsize), dtype=_HEAD
    )
    tails = np.frombuffer(
        os.pread(run, (last - first) * _TAIL.itemsize, tails_start + first * _TAIL.itemsize), dtype=_TAIL
    )
    if not len(tails):
        return heads, tails, []
    start, end = int(tails["offset"][0]), int(tails["offset"][-1] + tails["size"][-1])
    content = _read_all(run, end - start, start)
    places = (tails["offset"] - start).tolist()
    return heads, tails, [content[at : at + size] for at, size in zip(places, tails["size"].tolist(), strict=True)]


def _read_all(run: int, size: int, offset: int) -> bytes:
    parts = []
    while size:
        part = os.pread(run, min(size, 1 << 30), offset)  # one call reads no more than 2 GiB
        assert part, "the run ends early"
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _before(run: int, count: int, start: int, bound: int) -> int:
    """Rows with a head below ``bound``: by halving, since runs are many and each is asked for little."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if int.from_bytes(os.pread(run, 8, start + 8 * middle), "little") < bound:
            low = middle + 1
        else:
            high = middle
    return low


def _footer(run: int) -> tuple[int, int]:
    """Rows of a run, and where their heads begin."""
    size = os.fstat(run).st_size
    count, start = _FOOTER.unpack(os.pread(run, _FOOTER.size, size - _FOOTER.size))
    return int(count), int(start)
