"""A server with shards, a folder for a cache, and processes that share it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nt_pretrain.data.storage.cache import Cache
from nt_pretrain.data.storage.remote import Patience, Remote
from tests.data.storage.flaky import Flaky, flaky_server

QUICK = Patience(retries=3, timeout_seconds=2, slowest_bytes_per_second=1e6, backoff_seconds=0.01)
SIZE = 100_000


@dataclass(frozen=True)
class Store:
    """A server with shards 0.tar, 1.tar, ... of SIZE bytes, and an empty folder for the cache."""

    server: Flaky
    folder: Path
    contents: dict[str, bytes]

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.contents[name]).hexdigest()

    def cache(self, shards: float = 3) -> Cache:
        return Cache(self.folder, int(shards * SIZE))

    def remote(self, note: Callable[[str, str], None] = lambda kind, words: None) -> Remote:
        return Remote(self.server.url, QUICK, note)

    def get(self, cache: Cache, name: str) -> Path:
        path = cache.get(self.remote(), name, len(self.contents[name]), self.sha256(name))
        assert path.read_bytes() == self.contents[name]
        return path

    def listing(self) -> str:
        """What another process needs to know: sizes and hashes."""
        return json.dumps({name: [len(content), self.sha256(name)] for name, content in self.contents.items()})

    def held(self) -> list[str]:
        """Shards in the cache and parts, by their names at the server."""
        return sorted(path.name.split("-", 2)[2] for path in self.folder.iterdir() if path.name != "lock")


@contextmanager
def shard_store(tmp_path: Path) -> Iterator[Store]:
    served = tmp_path / "served"
    served.mkdir()
    contents = {f"{number}.tar": os.urandom(SIZE) for number in range(8)}
    for name, content in contents.items():
        (served / name).write_bytes(content)
    with flaky_server(served) as server:
        yield Store(server, tmp_path / "cache", contents)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    start = "import json, sys, time\nfrom pathlib import Path\nfrom nt_pretrain.data.storage.cache import Cache\n"
    start += "from nt_pretrain.data.storage.remote import Patience, Remote\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 60) -> str:
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    return output


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "did not happen in 30 s"
        time.sleep(0.01)
