"""Documents from text files, json lines and C4's layout; nothing is lost without being counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation import documents
from nt_pretrain.data.preparation.documents import Document, Problems, find_files, read_documents

ROWS = [f"document {number} ü" for number in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in ROWS).encode()
NOT_UTF8 = "documents with bytes that are not UTF-8, which were replaced"


def read(path: Path, longest: int = 1_000_000) -> tuple[list[str], dict[str, int]]:
    problems = Problems()
    found = [document.text for document in read_documents(path, problems, longest=longest)]
    return found, problems.counts


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.jsonl.gz", gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:])),
        ("rows.jsonl.zst", zstandard.compress(LINES)),
        ("rows.jsonl.zst", zstandard.compress(LINES[:5000]) + zstandard.compress(LINES[5000:])),
        ("c4-train.00000-of-01024.json.gz", gzip.compress(LINES)),
        ("windows.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    ],
)
def test_rows_of_every_kind_of_file(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(written(tmp_path / name, content)) == (ROWS, {})


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path, ending: str, share: float) -> None:
    whole = gzip.compress(LINES) if ending == ".gz" else zstandard.compress(LINES)
    path = written(tmp_path / f"rows.jsonl{ending}", whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"rows\.jsonl\.\w+: cannot be read: "):
        read(path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_damaged_file_is_an_error(tmp_path: Path, ending: str) -> None:
    checked = zstandard.ZstdCompressor(write_checksum=True)  # as the program zstd writes
    whole = bytearray(gzip.compress(LINES) if ending == ".gz" else checked.compress(LINES))
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(DataError, match="cannot be read"):
        read(written(tmp_path / f"rows.jsonl{ending}", bytes(whole)))


def test_c4_keeps_its_timestamp_and_url(tmp_path: Path) -> None:
    row = {"text": "words", "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org", "other": 1}
    path = written(tmp_path / "c4-train.00000-of-01024.json.gz", gzip.compress(json.dumps(row).encode()))
    meta = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"}
    assert list(read_documents(path, Problems())) == [Document("words", meta)]


def test_the_text_may_stand_in_another_field(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", b'{"body": "words", "url": "https://example.org"}\n{"text": "others"}\n')
    problems = Problems()
    found = list(read_documents(path, problems, field="body"))
    assert found == [Document("words", {"url": "https://example.org"})]
    assert problems.lines() == [f'1 rows left out, since they are no JSON object with a "body" (first: {path}:2)']
    assert list(read_documents(path, Problems(), field="url")) == [Document("https://example.org", {})]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = written(tmp_path / "book.txt", "\ufeff First line.\r\n\nÜber.\n\n".encode())
    assert read(path) == (["First line.\r\n\nÜber."], {})


def test_what_is_left_out_or_mended_is_counted(tmp_path: Path) -> None:
    lines = [b'{"text": "good"}', b'{"text": ""}', b'{"text": " \\n "}', b"not json", b'{"body": "x"}', b'{"text": 5}']
    lines += [b"", b"[1, 2]", b'{"text": "caf\xe9"}', b'{"text": "half \\ud800 pair"}', b"[" * 100_000]
    path = written(tmp_path / "rows.jsonl", b"\n".join(lines))
    problems = Problems()
    found = [document.text for document in read_documents(path, problems)]
    assert found == ["good", "caf\ufffd", "half ? pair"]
    assert problems.lines() == [
        f"2 empty documents left out (first: {path}:2)",
        f'5 rows left out, since they are no JSON object with a "text" (first: {path}:4)',
        f"1 {NOT_UTF8} (first: {path}:9)",
    ]


def test_text_that_holds_a_replacement_character_is_not_damaged(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.txt", "a \ufffd b".encode())) == (["a \ufffd b"], {})
    assert read(written(tmp_path / "b.txt", b"a \xff b")) == (["a \ufffd b"], {NOT_UTF8: 1})


def test_an_empty_file_is_counted(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.txt", b"")) == ([], {"empty documents left out": 1})
    assert read(written(tmp_path / "a.jsonl", b"")) == ([], {})


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_long_documents_are_cut_at_line_ends(tmp_path: Path, name: str) -> None:
    text = "".join(f"line {number:04d}\n" for number in range(100)) + "x" * 250
    content = text if name == "a.txt" else json.dumps({"text": text})
    found, counts = read(written(tmp_path / name, content.encode()), longest=100)
    assert counts == {"documents cut into pieces of at most 100 characters": 1}
    assert all(len(piece) <= 100 for piece in found)
    assert found[0] == "".join(f"line {number:04d}\n" for number in range(10)).strip()
    assert "".join("".join(found).split()) == "".join(text.split()), "nothing is lost"


def test_a_row_that_is_too_long_is_left_out_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "LONGEST_ROW", 40)
    fits = json.dumps({"text": "x" * 27}).encode()
    assert len(fits) == 39
    content = b"\n".join([fits, fits[:-2] + b'y"}', b'{"text": "' + b"z" * 500 + b'"}', b'{"text": "last"}'])
    for name, packed in (("a.jsonl", content), ("a.jsonl.gz", gzip.compress(content))):
        found, counts = read(written(tmp_path / name, packed))
        assert found == ["x" * 27, "last"]
        assert counts == {"rows left out, since they are longer than 40 bytes": 2}


@pytest.mark.parametrize("limit", range(1, 12))
def test_long_lines_of_text_are_not_cut_inside_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(documents, "LONGEST_PART", limit)
    text = "aé漢🐋" * 20 + "\nb🐋é\n" + "ende"
    assert read(written(tmp_path / "a.txt", text.encode())) == ([text], {})


def test_zstandard_files_are_unpacked_a_little_at_a_time(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 50_000_000}).encode()  # 5 KB packed
    found, _ = read(written(tmp_path / "a.jsonl.zst", zstandard.compress(line)), longest=60_000_000)
    assert [len(text) for text in found] == [50_000_000]


def test_files_of_a_folder_come_sorted_and_hidden_ones_do_not(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.jsonl.gz", "a/picture.jpg", ".git/c.txt", "a/.hidden.txt", "c.json.zst", "d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path) == [tmp_path / name for name in ("a/z.jsonl.gz", "b.txt", "c.json.zst", "d.parquet")]


def test_inputs_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no text in this folder; files are known by \.txt, "):
        find_files(tmp_path)
    with pytest.raises(DataError, match="unknown kind of file"):
        find_files(written(tmp_path / "a.pdf", b""))


def test_progress_reaches_the_end_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", LINES)
    seen: list[int] = []
    assert len(list(read_documents(path, Problems(), at=seen.append))) == 3000
    assert seen == sorted(seen)
    assert len(LINES) * 0.9 < seen[-1] <= len(LINES)
