"""Where the shards of a split lie: in a folder, or behind a URL with a bounded cache of verified copies before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nt_pretrain.config.schema import DataSection
from nt_pretrain.data.cache import Cache, CacheFull
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, parse_manifest, read_manifest
from nt_pretrain.data.remote import Patience, Remote, is_remote
from nt_pretrain.data.shards import Shard, index_path

Note = Callable[[str, str], None]


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

    Where the cache's disk is full, documents are read from the URL one by one: slower, but nothing is lost.
    """

    is_remote = True
    location: str

    def __init__(self, remote: Remote, cache: Cache, note: Note) -> None:
        self.location, self._remote, self._cache, self._note = remote.url, remote, cache, note

    def manifest(self) -> Manifest:
        return parse_manifest(self._remote.small(FILE).decode(errors="replace"), self.location)

    def shard(self, entry: ShardEntry) -> Shard:
        name = f"{self.location}/{entry.name}"
        index = self._cache.get(self._remote, index_path(Path(entry.name)).name, None, entry.index_sha256)
        try:
            path = self._cache.get(self._remote, entry.name, entry.bytes, entry.sha256)
        except CacheFull as error:
            self._note("cache full", f"{error}; {name} is read without it, document by document")

            def pread(size: int, offset: int) -> bytes:
                return self._remote.read(entry.name, offset, offset + size)

            return Shard.elsewhere(name, index, pread, bytes=entry.bytes)
        return Shard.open(path, bytes=entry.bytes, index_file=index, name=name)

    def fetch_ahead(self, entry: ShardEntry) -> None:
        self._cache.ahead(self._remote, entry.name, entry.bytes, entry.sha256)

    def forget(self, entry: ShardEntry) -> bool:
        self._cache.forget(self._remote, entry.name)
        return True


def store_of(data: DataSection, path: str, note: Note = lambda kind, words: None) -> Store:
    """The store of a split; ``path`` is its folder or URL."""
    if not is_remote(path):
        return Folder(Path(path))
    patience = Patience(data.retries, data.read_timeout_seconds, data.slowest_kb_per_second * 1000)
    cache = Cache(Path(data.cache_dir).expanduser(), int(data.cache_gb * 1e9))
    return Bucket(Remote(path, patience, note), cache, note)
