"""Where the shards of a split lie: in a folder, or behind a URL with a bounded cache of verified copies before it."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nt_pretrain.config.schema import DataSection
from nt_pretrain.data.errors import BadInput
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, parse_manifest, read_manifest
from nt_pretrain.data.shards import Shard, index_path
from nt_pretrain.data.storage.cache import Cache, CacheFull
from nt_pretrain.data.storage.remote import Patience, Remote, is_remote

Note = Callable[[str, str], None]
POLL_SECONDS = 0.2
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


@dataclass
class _Fetch:
    """A shard on its way: the thread that fetches it sets ``shard`` or ``error``, then ``done``."""

    done: threading.Event = field(default_factory=threading.Event)
    shard: Shard | None = None
    error: BaseException | None = None
    size: int = -1
    moved: float = field(default_factory=time.monotonic)
    """When bytes last came."""


class Bucket:
    """Shards below a URL, read through a cache that all processes of a machine share.

    A shard is waited for as long as bytes of it come. One of which nothing comes is given up for now and goes on being
    fetched: other ranks wait for this batch too. Where the cache's disk is full, documents are read from the URL one by
    one: slower, but nothing is lost.

    Args:
        note: told what was mended.
        alive: called while a shard is waited for and comes.
        wait_seconds: for bytes of a shard; of further ones right after, only a second.
    """

    is_remote = True
    location: str

    def __init__(
        self, remote: Remote, cache: Cache, *, note: Note, alive: Callable[[], None], wait_seconds: float
    ) -> None:
        self.location, self._remote, self._cache, self._note = remote.shown_url, remote, cache, note
        self._alive, self._wait_seconds, self._impatient_until = alive, wait_seconds, 0.0
        self._fetching: dict[str, _Fetch] = {}

    def manifest(self) -> Manifest:
        return parse_manifest(self._remote.small(FILE).decode(errors="replace"), f"{self.location}/{FILE}")

    def shard(self, entry: ShardEntry) -> Shard:
        fetch = self._fetching.get(entry.name)
        if fetch is None:
            fetch = self._fetching[entry.name] = _Fetch()
            # A daemon: a process ends at once, and what came so far is gone on with by the next.
            threading.Thread(target=self._run, args=(fetch, entry), name="fetch", daemon=True).start()
        self._wait(fetch, entry)
        del self._fetching[entry.name]
        if fetch.error is not None:
            raise fetch.error
        assert fetch.shard is not None
        return fetch.shard

    def _wait(self, fetch: _Fetch, entry: ShardEntry) -> None:
        """Until the shard is here.

        Raises:
            BadInput: nothing of it comes.
        """
        while not fetch.done.wait(POLL_SECONDS):
            now, size = time.monotonic(), self._cache.so_far(self._remote, entry.name, entry.bytes, entry.sha256)
            if size != fetch.size:
                fetch.size, fetch.moved = size, now
                self._alive()
            wait = min(1.0, self._wait_seconds) if now < self._impatient_until else self._wait_seconds
            if now - fetch.moved >= wait:
                self._impatient_until = now + self._wait_seconds
                raise BadInput(
                    "unreachable shard",
                    f"{self.location}/{entry.name}: nothing has come for {now - fetch.moved:.0f} s ({max(size, 0):,} "
                    f"of {entry.bytes:,} bytes are here); it goes on being fetched, and its documents are left out "
                    "until it is here",
                )

    def _run(self, fetch: _Fetch, entry: ShardEntry) -> None:
        try:
            fetch.shard = self._fetched(entry)
        except BaseException as error:
            fetch.error = error
        fetch.done.set()

    def _fetched(self, entry: ShardEntry) -> Shard:
        """A shard, opened; in a thread of its own."""
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


def store_of(
    data: DataSection,
    path: str,
    *,
    wait_seconds: float,
    note: Note = lambda kind, words: None,
    alive: Callable[[], None] = lambda: None,
) -> Store:
    """The store of a split; ``path`` is its folder or URL."""
    if not is_remote(path):
        return Folder(Path(path))
    patience = Patience(data.retries, data.read_timeout_seconds, data.slowest_kb_per_second * 1000)
    cache = Cache(Path(data.cache_dir).expanduser(), int(data.cache_gb * 1e9))
    return Bucket(Remote(path, patience, note), cache, note=note, alive=alive, wait_seconds=wait_seconds)
