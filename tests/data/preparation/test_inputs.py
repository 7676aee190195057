"""Inputs are found in one order; braces and stars stand for many files; nothing secret is shown."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation import inputs
from nt_pretrain.data.preparation.inputs import find_inputs
from nt_pretrain.data.storage.remote_errors import shown_url


def test_braces_stand_for_many_files(tmp_path: Path) -> None:
    url = "https://example.org/en/c4-train.{00000..00003}-of-01024.json.gz"
    (found,) = find_inputs([url])
    assert [file.name for file in found.files] == [f"c4-train.0000{n}-of-01024.json.gz" for n in range(4)]
    assert found.files[3].place == "https://example.org/en/c4-train.00003-of-01024.json.gz"
    assert (found.name, found.files[0].size) == (url, None)
    for name in ("a1.txt", "a2.txt", "{b}.txt"):
        (tmp_path / name).write_text("words")
    local = find_inputs([str(tmp_path / "a{1..2}.txt"), tmp_path / "{b}.txt"])
    assert [each.name for each in local] == ["a1.txt", "a2.txt", "{b}.txt"]
    assert local[0].files[0].size == 5


def test_stars_are_for_stores_that_list_their_files() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b.json.gz", "a.json.gz", "notes.pdf"):
        memory.pipe(f"/listed/{name}", b"x")
    (found,) = find_inputs(["memory://listed/*"])
    assert [file.place for file in found.files] == ["memory:///listed/a.json.gz", "memory:///listed/b.json.gz"]
    with pytest.raises(DataError, match=r"memory://nothing/\*: no text there"):
        find_inputs(["memory://nothing/*"])
    with pytest.raises(DataError, match=r"a web server does not list its files; name them with braces"):
        find_inputs(["https://example.org/*.jsonl"])


def test_passwords_and_signatures_are_not_shown() -> None:
    url = "https://me:secret@example.org/a.jsonl?signature=abc#d"
    assert shown_url(url) == "https://example.org/a.jsonl"
    (found,) = find_inputs([url])
    assert (found.name, found.files[0].called, found.files[0].name) == (shown_url(url), shown_url(url), "a.jsonl")
    assert found.files[0].place == url


def test_what_cannot_be_an_input_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"a\.pdf: unknown kind of file; known are \.txt, "):
        find_inputs(["https://example.org/a.pdf"])
    with pytest.raises(DataError, match="its braces do not match"):
        find_inputs(["https://example.org/a{0..3.jsonl"])
    monkeypatch.setattr(inputs, "MOST_FILES", 100)
    with pytest.raises(DataError, match="stand for more than 100 files"):
        find_inputs(["https://example.org/{0..99999999999}.jsonl"])
