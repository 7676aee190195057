"""A copy without a checksum is of one version, whenever the file changes at its server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.storage import remote as remote_module
from nt_pretrain.data.storage.download import TIMES, discard, download
from nt_pretrain.data.storage.remote import Patience, Remote
from tests.data.storage.flaky import Flaky, flaky_server

QUICK = Patience(retries=0, timeout_seconds=5, backoff_seconds=0.01)
OLD, NEW = b"old " * 1000, b"new " * 1000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    monkeypatch.setattr(remote_module, "CHUNK", 1000)
    (tmp_path / "served").mkdir()
    with flaky_server(tmp_path / "served") as found:
        put(found, OLD)
        yield found


def put(server: Flaky, content: bytes, seconds: int = 0) -> None:
    """At once, as a server's files are replaced."""
    path = server.folder / "a.txt"
    path.with_suffix(".new").write_bytes(content)
    os.utime(path.with_suffix(".new"), (seconds, seconds))
    path.with_suffix(".new").replace(path)


def get(server: Flaky, to: Path, said: list[str] | None = None) -> str:
    note = (lambda kind, words: None) if said is None else (lambda kind, words: said.append(words))
    return download(Remote(server.url, QUICK, note), "a.txt", to, lambda _: None)


def interrupted(server: Flaky, to: Path) -> None:
    server.choose = lambda name, number: "503" if number == 2 else None
    with pytest.raises(BadInput):
        get(server, to)
    assert to.read_bytes() == OLD[:2000]
    server.always(None)


def test_it_goes_on_with_the_same_version(server: Flaky, tmp_path: Path) -> None:
    interrupted(server, tmp_path / "copy")
    assert get(server, tmp_path / "copy") == Remote(server.url, QUICK).version("a.txt")
    assert (tmp_path / "copy").read_bytes() == OLD and server.requests["a.txt"] == 5
    discard(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


@pytest.mark.parametrize("content", [NEW, NEW[:1000], NEW * 2])
def test_between_attempts_it_is_begun_anew(server: Flaky, tmp_path: Path, content: bytes) -> None:
    interrupted(server, tmp_path / "copy")
    put(server, content, 1)
    get(server, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_bytes_of_unknown_version_are_not_taken(server: Flaky, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(NEW[:2000])
    get(server, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == OLD


@pytest.mark.parametrize("content", [NEW, NEW[:1000], NEW * 2])
def test_in_the_midst_it_is_begun_anew(server: Flaky, tmp_path: Path, content: bytes) -> None:
    def choose(name: str, number: int) -> None:
        if number == 2:
            put(server, content, 1)

    server.choose = choose
    said: list[str] = []
    get(server, tmp_path / "copy", said)
    assert (tmp_path / "copy").read_bytes() == content
    assert said == [f"{server.url}/a.txt: changed at the server while it was downloaded"]


def test_a_file_that_never_rests_is_given_up(server: Flaky, tmp_path: Path) -> None:
    server.choose = lambda name, number: put(server, NEW, number)  # type: ignore[func-returns-value]
    with pytest.raises(DataError, match=rf"a\.txt: changed at the server during each of {TIMES} downloads .*; wait"):
        get(server, tmp_path / "copy")


def test_without_a_mark_the_size_decides(server: Flaky, tmp_path: Path) -> None:
    server.tells_version = False
    interrupted(server, tmp_path / "copy")
    put(server, NEW + b"more", 1)
    get(server, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == NEW + b"more"
