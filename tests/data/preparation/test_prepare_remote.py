"""Preparing files of a server: each is read in one version, and what is finished is of the version that is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation import read_text
from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
from nt_pretrain.data.storage.remote import Patience, Remote
from tests.data.conftest import texts, write_rows
from tests.data.storage.flaky import Flaky, flaky_server

RECIPE = Recipe("t", 0.2, 3_000)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    quick = Patience(retries=0, timeout_seconds=5, backoff_seconds=0.01)
    monkeypatch.setattr(read_text, "Remote", lambda url: Remote(url, quick))
    (tmp_path / "served").mkdir()
    for number in range(3):
        write_rows(tmp_path / "served" / f"{number}.jsonl", texts(40, number))
    with flaky_server(tmp_path / "served") as found:
        yield found


def make(url: str, out: Path) -> None:
    prepare_text([url], out, RECIPE, lambda *_: None)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def half_done(server: Flaky, out: Path) -> str:
    """Two files are read, and the third is not there for now."""
    server.choose = lambda name, number: "503" if name == "2.jsonl" else None
    url = f"{server.url}/{{0..2}}.jsonl"
    with pytest.raises(DataError, match=r"2\.jsonl: .* could not be read .*; what is finished is kept"):
        make(url, out)
    server.always(None)
    return url


def change(server: Flaky, name: str) -> None:
    write_rows(server.folder / name, texts(40, 9))
    os.utime(server.folder / name, (1, 1))


def test_finished_files_are_read_again_when_they_changed(server: Flaky, tmp_path: Path) -> None:
    url = half_done(server, tmp_path / "out")
    change(server, "1.jsonl")
    make(url, tmp_path / "out")
    make(url, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert (server.requests["0.jsonl"], server.requests["1.jsonl"]) == (2, 3), "the other one was not read again"


def test_shards_written_from_a_version_go_with_it(
    server: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/{{0..2}}.jsonl"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nt_pretrain.data.preparation.prepare_text._sources", interrupt)
        make(url, tmp_path / "out")
    change(server, "1.jsonl")
    make(url, tmp_path / "out")
    make(url, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_server_that_cannot_say_stops_it_and_nothing_is_lost(server: Flaky, tmp_path: Path) -> None:
    url = half_done(server, tmp_path / "out")
    (server.folder / "0.jsonl").rename(server.folder / "0.away")
    with pytest.raises(DataError, match=r"0\.jsonl: there is no such file .*; what was read of it is kept"):
        make(url, tmp_path / "out")
    (server.folder / "0.away").rename(server.folder / "0.jsonl")
    make(url, tmp_path / "out")
    assert server.requests["0.jsonl"] == 2, "one of them is the question after its size that a missing file gets"


def test_another_signature_takes_up_what_is_finished_and_is_never_written_down(server: Flaky, tmp_path: Path) -> None:
    out, url = tmp_path / "out", f"{server.url}/{{0..2}}.jsonl?X-Sig="
    server.choose = lambda name, number: "403" if name == "2.jsonl" else None
    with pytest.raises(DataError, match="access is denied") as raised:
        make(url + "c0ffee", out)
    kept = tree(tmp_path / "out.partial")
    assert "c0ffee" not in str(raised.value)
    assert not [name for name, content in kept.items() if "c0ffee" in name or b"c0ffee" in content]
    server.always(None)
    make(url + "c0ffee2", out)
    assert server.requests["0.jsonl"] == 1
    assert not [name for name, content in tree(out).items() if b"c0ffee" in content]
    assert json.loads((out / "train" / "manifest.json").read_text())["sources"][0]["name"] == url.partition("?")[0]
