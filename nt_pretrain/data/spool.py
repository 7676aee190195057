"""Sorts more rows than memory holds: first into buckets on disk by their key, then each bucket in memory."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

KEY_BYTES = 24
BUFFER_BYTES = 64_000_000
"""Rows held before they go to disk: buckets of a large corpus are more than a process may keep open."""
_LENGTH = struct.Struct("<Q")


class Spool:
    """Rows of several splits, each with a key of 24 evenly spread bytes.

    Args:
        folder: made here; :meth:`remove` deletes it.
        buckets: so many that one fits into memory. The order that comes out does not depend on it.
    """

    def __init__(self, folder: Path, buckets: int) -> None:
        self.counts: dict[str, int] = {}
        self._folder, self._buckets = folder, buckets
        self._held: dict[tuple[str, int], bytearray] = {}
        self._size = 0
        folder.mkdir()

    def add(self, split: str, key: bytes, row: bytes) -> None:
        assert len(key) == KEY_BYTES, f"a key has {KEY_BYTES} bytes, not {len(key)}"
        bucket = int.from_bytes(key[:8], "big") * self._buckets >> 64
        held = self._held.setdefault((split, bucket), bytearray())
        held += key + _LENGTH.pack(len(row)) + row
        self._size += KEY_BYTES + _LENGTH.size + len(row)
        self.counts[split] = self.counts.get(split, 0) + 1
        if self._size > BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for (split, bucket), held in self._held.items():
            with self._path(split, bucket).open("ab") as file:
                file.write(held)
        self._held.clear()
        self._size = 0

    def in_order(self, split: str) -> Iterator[bytes]:
        """Rows of a split by key; those of one key in the order they came."""
        for bucket in range(self._buckets):
            path = self._path(split, bucket)
            if not path.exists():
                continue
            content = path.read_bytes()
            rows, place = [], 0
            while place < len(content):
                start = place + KEY_BYTES + _LENGTH.size
                (length,) = _LENGTH.unpack_from(content, place + KEY_BYTES)
                rows.append((content[place : place + KEY_BYTES], start, length))
                place = start + length
            for _, start, length in sorted(rows):
                yield content[start : start + length]

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def _path(self, split: str, bucket: int) -> Path:
        return self._folder / f"{split}-{bucket:06d}"
