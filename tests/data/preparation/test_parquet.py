"""Parquet gives the same documents as json lines."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.preparation.documents import Document, Problems, read_documents
from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
from tests.data.conftest import texts, write_rows

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, list[object]]) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=100)
    return path


def test_rows_of_several_row_groups_with_url_and_timestamp(tmp_path: Path) -> None:
    when = datetime.datetime(2019, 4, 25, 12, 57, 54)
    rows = texts(250)
    urls = [f"https://example.org/{n}" for n in range(250)]
    path = write(tmp_path / "a.parquet", {"other": [1] * 250, "url": urls, "text": rows, "timestamp": [when] * 250})
    seen: list[int] = []
    found = list(read_documents(path, Problems(), at=seen.append))
    meta = {"timestamp": "2019-04-25T12:57:54"}
    assert found == [Document(text, {**meta, "url": url}) for text, url in zip(rows, urls, strict=True)]
    assert seen == sorted(seen) and seen[-1] == path.stat().st_size


def test_what_is_no_text_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["words", None, "  "]})
    problems = Problems()
    assert [document.text for document in read_documents(path, problems)] == ["words"]
    assert problems.lines() == [
        f'1 rows left out, since they are no row with a "text" (first: {path}:2)',
        f"1 empty documents left out (first: {path}:3)",
    ]


def test_a_missing_column_says_how_to_name_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"id": ["1"], "content": ["words"]})
    with pytest.raises(DataError, match=r"no column 'text' \(columns: id, content\); .*--text-field"):
        list(read_documents(path, Problems()))
    assert [document.text for document in read_documents(path, Problems(), field="content")] == ["words"]


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": texts(300)})
    whole = path.read_bytes()
    for damaged in (whole[:-300], whole[:100] + b"\xff" * 200 + whole[300:], b"", b"PAR1PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet: cannot be read: "):
            list(read_documents(path, Problems()))


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["words"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"parquet needs the package pyarrow; install the extra 'parquet'"):
        list(read_documents(path, Problems()))


def test_the_shards_are_those_of_json_lines(tmp_path: Path) -> None:
    rows = texts(200)
    write(tmp_path / "a.parquet", {"text": rows[:120]})
    write(tmp_path / "b.parquet", {"text": rows[120:]})
    recipe = Recipe("p", 0.2, 3_000)
    inputs = {"packed": [tmp_path / "a.parquet", tmp_path / "b.parquet"], "lines": [tmp_path / "rows.jsonl"]}
    write_rows(tmp_path / "rows.jsonl", rows)
    for name, paths in inputs.items():
        prepare_text(paths, tmp_path / name, recipe, lambda *_: None)
    prints = [read_manifest(tmp_path / name / "train").fingerprint for name in inputs]
    assert prints[0] == prints[1]
