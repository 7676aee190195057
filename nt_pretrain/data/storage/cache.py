"""A bounded folder of verified copies of remote shards, shared by all processes of a machine."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Any

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.storage.cache_folder import Folder
from nt_pretrain.data.storage.remote import Remote
from nt_pretrain.data.storage.remote_errors import CHANGED, UNREACHABLE

AHEAD = 256
"""Shards that may wait to be fetched ahead; what is asked for beyond is fetched when it is needed."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_EVICTIONS = 20
"""Times that room is made on a full disk for one shard. More means that others fill the disk as fast."""


class CacheFull(OSError):
    """The disk of the cache is full, and nothing is left in the cache that could be deleted."""


class Cache:
    """A bounded folder of verified copies, shared by all processes of a machine.

    A shard is downloaded by one process while the others wait, appears complete and verified or not at all, and is
    deleted when room is needed and it was used longest ago. Files that are not the cache's are left alone.

    Args:
        limit_bytes: what complete shards and those on their way take together; the same in all processes.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = Folder(folder, limit_bytes)
        self._ahead = _Ahead(self)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: the folder of the cache cannot be made: {error.strerror}") from None

    def get(self, remote: Remote, name: str, size: int | None, sha256: str) -> Path:
        """A complete and verified copy. Open it at once: it may be evicted later, which an open file survives.

        A ``size`` that is not known is asked of the server, if the file has to be fetched at all.

        Raises:
            BadInput: as :class:`Remote` does; "changed shard" if the server holds other bytes than the manifest lists.
            CacheFull: the disk is full even after evicting.
            DataError: the cache cannot be written, or its limit is less than the shard.
        """
        key = _key(remote, name, sha256)
        entry = self._folder.entry(key)
        try:
            while not _touched(entry, size):
                with self._folder.locked(key):
                    if not _complete(entry, size):
                        size = remote.size(name) if size is None else size
                        if size is None:
                            raise BadInput(UNREACHABLE, f"{remote.shown(name)}: the server does not tell its size")
                        self._download(remote, name, size, sha256, key)
        except CacheFull:
            raise
        except OSError as error:
            raise DataError(f"{self._folder.path}: the cache cannot be used: {error}") from None
        return entry

    def so_far(self, remote: Remote, name: str, size: int, sha256: str) -> int:
        """Bytes of a shard that have come; -1 before the first."""
        try:
            return self._folder.part(_key(remote, name, sha256), size).stat().st_size
        except FileNotFoundError:
            return -1

    def ahead(self, remote: Remote, name: str, size: int, sha256: str) -> None:
        """As :meth:`get`, in a background thread. Errors are kept quiet: ``get`` will meet them."""
        if not _touched(self._folder.entry(_key(remote, name, sha256)), size):
            self._ahead.add(remote, name, size, sha256)

    def forget(self, remote: Remote, name: str) -> None:
        """Drop an entry found damaged."""
        for held in self._folder.held():
            if held.key.startswith(_url_digest(remote, name)) and not held.part:
                held.path.unlink(missing_ok=True)

    def _download(self, remote: Remote, name: str, size: int, sha256: str, key: str) -> None:
        part, seen = self._folder.part(key, size), set[str]()
        for attempt in range(1, max(2, remote.patience.retries + 1) + 1):
            self._fill(remote, name, size, key)
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if found == sha256:
                part.rename(self._folder.entry(key))
                return
            part.unlink()
            words = f"{remote.shown(name)}: sha256 {found[:12]}... came, and the manifest lists {sha256[:12]}..."
            # Bits that fell over on the way do not fall twice alike.
            if found in seen:
                raise BadInput(CHANGED, f"{words} ({size:,} bytes, downloaded {attempt} times)")
            seen.add(found)
            remote.note("retried read", f"{words} (attempt {attempt})")
        raise BadInput(UNREACHABLE, f"{words}; every one of {attempt} downloads brought other bytes")

    def _fill(self, remote: Remote, name: str, size: int, key: str) -> None:
        for _ in range(_EVICTIONS):
            self._folder.make_room(key, size)
            try:
                return remote.fetch(name, self._folder.part(key, size), size)
            except BadInput as error:
                # A part is worth keeping only for a server that may come back.
                part = self._folder.part(key, size)
                if error.kind != UNREACHABLE or not part.stat().st_size:
                    part.unlink()
                raise
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            if not self._folder.relieve(key, size):
                break
        self._folder.part(key, size).unlink(missing_ok=True)
        raise CacheFull(
            f"{self._folder.path}: the disk of the cache is full, and nothing of the cache is left to delete; "
            f"{remote.shown(name)} needs {size:,} bytes. Free some space, or give the cache another folder or a lower "
            f"limit (now {self._folder.limit:,} bytes)"
        )


class _Ahead:
    """The thread that fetches ahead, and what waits for it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._waiting: deque[tuple[Remote, str, int, str]] = deque()
        self._asked: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ahead, (self._cache,)

    def add(self, remote: Remote, name: str, size: int, sha256: str) -> None:
        with self._lock:
            if (remote.url, name) in self._asked or len(self._waiting) >= AHEAD:
                return
            self._asked.add((remote.url, name))
            self._waiting.append((remote, name, size, sha256))
            if self._thread is None or not self._thread.is_alive():
                # A daemon: a process ends at once, and what came so far is gone on with by the next.
                self._thread = threading.Thread(target=self._work, name="fetch ahead", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                remote, name, size, sha256 = self._waiting.popleft()
            try:
                self._cache.get(remote, name, size, sha256)
            except (DataError, OSError):
                pass
            finally:
                with self._lock:
                    self._asked.discard((remote.url, name))


def working_set_bytes(largest_shard_bytes: int, documents_per_shard: int, lanes: int, window: int) -> int:
    """Bytes of the shards that the lanes of one machine need for a window and the next.

    With a lower limit shards are evicted before they are read to the end, and downloaded again and again.
    """
    return lanes * (math.ceil(window / documents_per_shard) + 1) * 2 * largest_shard_bytes


def _key(remote: Remote, name: str, sha256: str) -> str:
    """The file name of an entry: one name under another URL, or in another version of the data, is another entry."""
    base = re.sub(r"[^A-Za-z0-9._-]", "_", remote.shown(name).rsplit("/", 1)[-1])[-100:]
    base = re.sub(r"[.](part|lock)$", r"_\1", base)  # endings with a meaning here
    return f"{_url_digest(remote, name)}-{sha256[:8]}-{base}"


def _url_digest(remote: Remote, name: str) -> str:
    # As it is shown: another signature or password leads to the same file.
    return hashlib.sha256(remote.shown(name).encode()).hexdigest()[:16]


def _touched(entry: Path, size: int | None) -> bool:
    """Whether an entry is complete; marks it as used."""
    try:
        if entry.stat().st_size != size and size is not None:
            return False
        os.utime(entry)
    except FileNotFoundError:
        return False
    return True


def _complete(entry: Path, size: int | None) -> bool:
    """Whether an entry is complete; one of another size was cut by somebody, and is deleted."""
    if _touched(entry, size):
        return True
    entry.unlink(missing_ok=True)
    return False
