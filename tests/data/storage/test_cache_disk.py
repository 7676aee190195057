"""The cache on a disk that is really full."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nt_pretrain.data.storage.cache import CacheFull
from tests.data.storage.shard_store import Store, finish, python, shard_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with shard_store(tmp_path) as found:
        yield found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 1 MB."""
    point = tmp_path / "disk"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(point)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_full_disk_is_relieved_by_eviction(store: Store, disk: Path) -> None:
    store = Store(store.server, disk / "cache", store.contents)
    (disk / "other").write_bytes(b"x" * 680_000)
    cache = store.cache(1000)
    for name in ("0.tar", "1.tar", "2.tar", "3.tar", "4.tar"):
        store.get(cache, name)
        time.sleep(0.002)
    held = store.held()
    assert held[-1] == "4.tar" and 2 <= len(held) <= 3
    assert not [name for name in held if not name.endswith(".tar")]


def test_a_disk_full_of_other_things(store: Store, disk: Path) -> None:
    store = Store(store.server, disk / "cache", store.contents)
    cache = store.cache(1000)
    store.get(cache, "0.tar")
    _fill(disk / "other", leave=50_000)
    store.get(cache, "1.tar")
    assert store.held() == ["1.tar"]
    cache.forget(store.remote(), "1.tar")
    _fill(disk / "more", leave=20_000)
    with pytest.raises(
        CacheFull, match=r"the disk of the cache is full, .*/2.tar needs 100,000 bytes. Free some space"
    ):
        store.get(cache, "2.tar")
    assert store.held() == []


def test_two_downloads_on_a_disk_with_room_for_one(store: Store, disk: Path) -> None:
    content = os.urandom(600_000)
    for name in ("8.tar", "9.tar"):
        store.contents[name] = content + name.encode()
        (store.server.folder / name).write_bytes(store.contents[name])
    code = """
        url, folder, name, listing = sys.argv[1:]
        Cache(Path(folder), 10**9).get(Remote(url), name, *json.loads(listing)[name])
        """
    folder = disk / "cache"
    running = [python(code, store.server.url, str(folder), name, store.listing()) for name in ("8.tar", "9.tar")]
    for process in running:
        finish(process)
    assert len(Store(store.server, folder, store.contents).held()) == 1


def _fill(path: Path, leave: int) -> None:
    """Fill the disk of a path, but for some bytes."""
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        os.truncate(path, max(0, file.tell() - leave))
