"""Where the shards of a split lie: in a folder, or behind a URL with a bounded cache of verified copies before it."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nt_pretrain.config.schema import DataSection
from nt_pretrain.data.errors import BadInput
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, parse_manifest, read_manifest
from nt_pretrain.data.shards import Shard, index_path
from nt_pretrain.data.storage.cache import Cache, CacheFull
from nt_pretrain.data.storage.remote import Patience, Remote, is_remote

Note = Callable[[str, str], None]
ATTEMPTS = 5
"""At opening a copy that others may evict first."""


class Store(Protocol):
    """The files of one split.

    Attributes:
        location: folder or URL.
        is_remote: whether fetching ahead is of use.
    """

    @property
    def location(self) -> str: ...

    @property
    def is_remote(self) -> bool: ...

    def manifest(self) -> Manifest:
        """Raises DataError if there is none."""

    def shard(self, entry: ShardEntry) -> Shard:
        """A shard, checked against its entry and opened. Raises BadInput."""

    def fetch_ahead(self, entry: ShardEntry) -> None:
        """Begin to fetch a shard that will be needed soon."""

    def forget(self, entry: ShardEntry) -> bool:
        """Whether a damaged shard may be whole when it is opened again."""


@dataclass(frozen=True)
class Folder:
    """Shards in a folder of a file system."""

    path: Path

    @property
    def is_remote(self) -> bool:
        return False

    @property
    def location(self) -> str:
        return str(self.path)

    def manifest(self) -> Manifest:
        return read_manifest(self.path)

    def shard(self, entry: ShardEntry) -> Shard:
        return Shard.open(self.path / entry.name, bytes=entry.bytes, index_sha256=entry.index_sha256)

    def fetch_ahead(self, entry: ShardEntry) -> None:
        pass

    def forget(self, entry: ShardEntry) -> bool:
        return False


class Bucket:
    """Shards below a URL, read through a cache that all processes of a machine share.

    A shard that does not come in time is given up for now and goes on being fetched, so that no batch waits for long:
    other ranks wait for it too. Where the cache's disk is full, documents are read from the URL one by one: slower, but
    nothing is lost.

    Args:
        wait_seconds: for a shard; for further ones right after, only a second.
    """

    is_remote = True
    location: str

    def __init__(self, remote: Remote, cache: Cache, note: Note, wait_seconds: float) -> None:
        self.location, self._remote, self._cache, self._note = remote.url, remote, cache, note
        self._wait_seconds, self._impatient_until = wait_seconds, 0.0
        self._fetches = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fetch")
        self._fetching: dict[str, Future[Shard]] = {}

    def manifest(self) -> Manifest:
        return parse_manifest(self._remote.small(FILE).decode(errors="replace"), f"{self.location}/{FILE}")

    def shard(self, entry: ShardEntry) -> Shard:
        fetch = self._fetching.get(entry.name)
        if fetch is None:
            fetch = self._fetching[entry.name] = self._fetches.submit(self._fetched, entry)
        patient = time.monotonic() >= self._impatient_until
        wait = self._wait_seconds if patient else min(1.0, self._wait_seconds)
        try:
            shard = fetch.result(timeout=wait)
        except TimeoutError:
            self._impatient_until = time.monotonic() + self._wait_seconds
            raise BadInput(
                "unreachable shard",
                f"{self.location}/{entry.name}: has not come within {wait:.0f} s; it goes on being fetched, and its "
                "documents are left out until it is here",
            ) from None
        except BaseException:
            del self._fetching[entry.name]
            raise
        del self._fetching[entry.name]
        return shard

    def _fetched(self, entry: ShardEntry) -> Shard:
        """A shard, opened; in one of the threads that fetch."""
        name = f"{self.location}/{entry.name}"
        index_name = index_path(Path(entry.name)).name
        for _ in range(ATTEMPTS):
            try:
                # Held here, since the cache may evict it as soon as the tar comes.
                index = io.BytesIO(self._cache.get(self._remote, index_name, None, entry.index_sha256).read_bytes())
                path = self._cache.get(self._remote, entry.name, entry.bytes, entry.sha256)
            except CacheFull as error:
                self._note("cache full", f"{error}; {name} is read without it, document by document")
                return self._without_cache(entry, name, index_name)
            except FileNotFoundError:
                continue  # the index was evicted before it could be read
            try:
                return Shard.open(path, bytes=entry.bytes, index=index, name=name)
            except BadInput:
                if path.exists():
                    raise
        words = f"{name}: evicted {ATTEMPTS} times before it could be opened; data.cache_gb is too small"
        raise BadInput("unreachable shard", words)

    def _without_cache(self, entry: ShardEntry, name: str, index_name: str) -> Shard:
        index = self._remote.small(index_name)
        if hashlib.sha256(index).hexdigest() != entry.index_sha256:
            raise BadInput("damaged index", f"{self.location}/{index_name}: is not what the manifest lists (sha256)")

        def pread(size: int, offset: int) -> bytes:
            return self._remote.read(entry.name, offset, offset + size)

        return Shard.elsewhere(name, io.BytesIO(index), pread, bytes=entry.bytes)

    def fetch_ahead(self, entry: ShardEntry) -> None:
        self._cache.ahead(self._remote, entry.name, entry.bytes, entry.sha256)

    def forget(self, entry: ShardEntry) -> bool:
        self._cache.forget(self._remote, entry.name)
        return True


def store_of(data: DataSection, path: str, note: Note, *, wait_seconds: float) -> Store:
    """The store of a split; ``path`` is its folder or URL."""
    if not is_remote(path):
        return Folder(Path(path))
    patience = Patience(data.retries, data.read_timeout_seconds, data.slowest_kb_per_second * 1000)
    cache = Cache(Path(data.cache_dir).expanduser(), int(data.cache_gb * 1e9))
    return Bucket(Remote(path, patience, note), cache, note, wait_seconds)
