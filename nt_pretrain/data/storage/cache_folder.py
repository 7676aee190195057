"""The folder of the cache: what lies in it, who works on it, and what goes when there is no room.

Per entry ``KEY`` (complete), ``KEY.SIZE.part`` (on its way to SIZE bytes) and, while somebody works on it,
``KEY.lock``. Who changes more than one entry holds the lock of the folder. A part whose lock is held has its room
reserved; one whose lock is free was left by a process that died or gave up. Locks are flocks: the kernel frees those
of a dead process.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nt_pretrain.data.errors import DataError

_NAME = re.compile(r"(?P<key>[0-9a-f]{16}-[0-9a-f]{8}-[\w.-]+?)(\.(?P<size>\d+)\.part)?", re.ASCII)
"""Files of other names are not the cache's, and are never touched."""
_POLL = 0.05


@dataclass(frozen=True)
class Held:
    """One file of the cache."""

    path: Path
    key: str
    bytes: int
    """On disk; of a part at work, all that it will have."""
    part: bool
    at_work: bool
    """Somebody is filling this part."""
    used: float
    """When it was used last, in seconds."""


@dataclass(frozen=True)
class Folder:
    """Room for ``limit`` bytes at ``path``, shared by every process that uses the folder with this limit."""

    path: Path
    limit: int

    def entry(self, key: str) -> Path:
        return self.path / key

    def part(self, key: str, size: int) -> Path:
        return self.path / f"{key}.{size}.part"

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Alone with an entry; waits for the process that is."""
        lock = self._lock(key)
        while True:
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file, lock):
                    continue  # whoever had it was done and took the file away: this lock says nothing any more
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
            finally:
                # Not only closed: a forked child may have a copy, which would hold the lock on.
                fcntl.flock(file, fcntl.LOCK_UN)
                os.close(file)

    def make_room(self, key: str, size: int) -> None:
        """Reserve ``size`` bytes for the part of an entry that the caller has locked; waits for downloads that end.

        Raises:
            DataError: the limit is less than the size.
        """
        if size > self.limit:
            raise DataError(
                f"{self.path}: the cache may hold {self.limit:,} bytes, and one shard has {size:,}; "
                "raise the limit of the cache"
            )
        part = self.part(key, size)
        while True:
            with self._alone():
                others = [held for held in self.held() if held.key != key]
                taken = sum(held.bytes for held in others)
                if taken + size > self.limit:
                    taken -= self._evict(others, taken + size - self.limit)
                if taken + size <= self.limit:
                    part.touch()
                    return
                # All the rest is being written. Who waits reserves nothing, or two could wait for each other.
                part.unlink(missing_ok=True)
            time.sleep(_POLL)

    def relieve(self, key: str, size: int) -> bool:
        """Make room on a full disk for the rest of a part: by eviction, else by waiting for another download's end.

        Returns:
            Whether it is worth trying again; the room has to be reserved anew. If not, the part is gone.
        """
        part = self.part(key, size)
        with self._alone():
            need = size - part.stat().st_size
            others = [held for held in self.held() if held.key != key]
            if shutil.disk_usage(self.path).free > need or self._evict(others, need):
                return True
            part.unlink()
            busy = [held for held in others if held.at_work]
        while busy and all(held.path.exists() and self._at_work(held.key) for held in busy):
            time.sleep(_POLL)
        return bool(busy)

    def held(self) -> list[Held]:
        """All files of the cache, complete and not."""
        names = set(os.listdir(self.path))
        matches = [match for name in names if not name.endswith(".lock") and (match := _NAME.fullmatch(name))]
        found = []
        for match in matches:
            path, key, promised = self.path / match[0], match["key"], match["size"]
            # Asked before it is measured: a download that ends in between counts with its last size, not an earlier.
            at_work = promised is not None and self._at_work(key)
            stat = _stat(path)
            if stat is not None:
                size = max(stat.st_size, int(promised or 0)) if at_work else stat.st_size
                found.append(Held(path, key, size, promised is not None, at_work, stat.st_mtime))
            elif promised is not None and key not in names and (stat := _stat(self.entry(key))) is not None:
                found.append(Held(self.entry(key), key, stat.st_size, False, False, stat.st_mtime))  # just completed
        return found

    def _at_work(self, key: str) -> bool:
        with self._if_free(key) as free:
            return not free

    def _evict(self, candidates: list[Held], need: int) -> int:
        """Delete what the dead left, then what was used longest ago, never what is locked; the bytes freed."""
        freed = 0
        for held in sorted(candidates, key=lambda held: (not held.part, held.used)):
            if freed >= need:
                break
            with self._if_free(held.key) as free:
                if free and _stat(held.path) is not None:
                    held.path.unlink(missing_ok=True)
                    freed += held.bytes
        return freed

    @contextmanager
    def _if_free(self, key: str) -> Iterator[bool]:
        """Whether nobody works on an entry; nobody starts to within the block if so."""
        lock = self._lock(key)
        try:
            file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            yield False
            return
        try:
            yield True
            if _is_at(file, lock):
                lock.unlink()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def _lock(self, key: str) -> Path:
        return self.path / f"{key}.lock"


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    stat = _stat(path)
    return stat is not None and os.path.samestat(os.fstat(file), stat)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
