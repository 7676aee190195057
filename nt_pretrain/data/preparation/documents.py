"""Reads documents from what people have: text files, json lines (gzip, zstandard), parquet, folders of these, C4."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation import compressed, parquet

TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")
ROW_ENDINGS = (".jsonl", ".json")
KEPT_FIELDS = ("timestamp", "url")
"""Fields of a row that are kept beside its text: those of C4."""
LONGEST = 1_000_000
"""Characters after which a document is cut: reader processes hold and tokenize whole documents."""
LONGEST_ROW = 1 << 26
"""Bytes after which a row is left out: parsing takes several times as much memory."""
LONGEST_PART = 1 << 24
"""Bytes of a line of a text file that are held at once."""
KNOWN = f"{', '.join(TEXT_ENDINGS + ROW_ENDINGS)}, also with .gz or .zst, and {parquet.ENDING}"
NOT_UTF8 = "documents with bytes that are not UTF-8, which were replaced"


@dataclass(frozen=True)
class Document:
    """A text and, where its source has them, its timestamp and url."""

    text: str
    meta: dict[str, str]


@dataclass
class Problems:
    """What was left out or mended: how often each, and where it was seen first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, where)

    def merge(self, later: Problems) -> None:
        """Add what was found in a later part of the input."""
        for kind, count in later.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.first.setdefault(kind, later.first[kind])

    def lines(self) -> list[str]:
        return [f"{count:,} {kind} (first: {self.first[kind]})" for kind, count in self.counts.items()]


def find_files(path: Path) -> list[Path]:
    """The files to read of an input, sorted, so that the same input is always read in the same order.

    In a folder, files of other kinds and hidden ones are passed over.

    Raises:
        DataError: the input is not there, or nothing in it can be read.
    """
    if path.is_file():
        if not kind_of(path.name):
            raise DataError(f"{path}: unknown kind of file; known are {KNOWN}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder")
    inside = (each for each in path.rglob("*") if not any(p.startswith(".") for p in each.relative_to(path).parts))
    found = sorted(each for each in inside if each.is_file() and kind_of(each.name))
    if not found:
        raise DataError(f"{path}: no text in this folder; files are known by {KNOWN}")
    return found


def kind_of(name: str) -> str:
    """What a file holds by its name: text, rows, parquet; or nothing, if that is not known."""
    name = name.lower()
    if name.endswith(parquet.ENDING):
        return "parquet"
    for ending in compressed.ENDINGS:
        name = name.removesuffix(ending)
    if name.endswith(TEXT_ENDINGS):
        return "text"
    return "rows" if name.endswith(ROW_ENDINGS) else ""


def read_documents(
    path: Path,
    problems: Problems,
    *,
    longest: int = LONGEST,
    field: str = "text",
    called: str = "",
    at: Callable[[int], None] = lambda _: None,
) -> Iterator[Document]:
    """The documents of one file: of each row its text, or the whole of a text file.

    What cannot be used is left out and counted in ``problems`` by its reason. Documents of more than ``longest``
    characters are cut at line ends.

    Args:
        field: of a row, holds its text.
        called: what messages call the file; its path by default.
        at: is told the bytes of the file read so far.

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    called = called or str(path)
    kind = kind_of(path.name)
    reader = _Reader(called, problems, longest, field, "row" if kind == "parquet" else "JSON object")
    try:
        if kind == "parquet":
            columns = tuple(dict.fromkeys((field, *KEPT_FIELDS)))
            yield from reader.of_table(parquet.parquet_rows(path, called, columns, field, at))
            return
        with path.open("rb") as raw, compressed.decompressed(path, raw) as file:
            make = reader.of_text if kind == "text" else reader.of_rows
            for number, document in enumerate(make(file)):
                if number % 64 == 0:
                    at(raw.tell())
                yield document
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{called}: cannot be read: {error}") from None


@dataclass(frozen=True)
class _Reader:
    """Makes documents of one file's content."""

    called: str
    problems: Problems
    longest: int
    field: str
    row: str

    def of_text(self, file: io.BufferedReader) -> Iterator[Document]:
        damaged = False

        def decoded() -> Iterator[str]:
            nonlocal damaged
            for line in compressed.text_lines(file, LONGEST_PART):
                text, whole = _decode(line)
                damaged |= not whole
                yield text

        yield from self._usable(decoded(), {}, self.called)
        if damaged:
            self.problems.add(NOT_UTF8, self.called)

    def of_rows(self, file: io.BufferedReader) -> Iterator[Document]:
        for number, line in enumerate(compressed.rows(file, LONGEST_ROW), 1):
            where = f"{self.called}:{number}"
            if line is None:
                self.problems.add(f"rows left out, since they are longer than {LONGEST_ROW:,} bytes", where)
                continue
            decoded, whole = _decode(line)
            try:
                row = json.loads(decoded)
            except (ValueError, RecursionError):
                if line.strip():
                    self.problems.add(self._no_row, where)
                continue
            yield from self._of_row(row, where, whole)

    def of_table(self, rows: Iterator[dict[str, Any]]) -> Iterator[Document]:
        for number, row in enumerate(rows, 1):
            yield from self._of_row(row, f"{self.called}:{number}", True)

    def _of_row(self, row: Any, where: str, whole: bool) -> Iterator[Document]:
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            self.problems.add(self._no_row, where)
            return
        if not whole:
            self.problems.add(NOT_UTF8, where)
        kept = {key: row.get(key) for key in KEPT_FIELDS if key != self.field}
        meta = {key: _sound(value) for key, value in kept.items() if isinstance(value, str)}
        parts = [text] if len(text) <= self.longest else text.splitlines(keepends=True)
        yield from self._usable(parts, meta, where)

    @property
    def _no_row(self) -> str:
        return f'rows left out, since they are no {self.row} with a "{self.field}"'

    def _usable(self, parts: Iterable[str], meta: dict[str, str], where: str) -> Iterator[Document]:
        """Documents of the text that ``parts`` make together, without empty ones."""
        number = 0
        for piece in _pieces(parts, self.longest):
            text = _sound(piece).strip()
            if text:
                number += 1
                yield Document(text, meta)
        if number == 0:
            self.problems.add("empty documents left out", where)
        if number > 1:
            self.problems.add(f"documents cut into pieces of at most {self.longest:,} characters", where)


def _pieces(parts: Iterable[str], longest: int) -> Iterator[str]:
    """The parts joined to pieces of at most ``longest`` characters; a longer part is cut where it must be."""
    held: list[str] = []
    size = 0
    for part in parts:
        if held and size + len(part) > longest:
            yield "".join(held)
            held, size = [], 0
        start = 0
        while len(part) - start > longest:
            yield part[start : start + longest]
            start += longest
        rest = part[start:] if start else part
        held.append(rest)
        size += len(rest)
    yield "".join(held)


def _sound(text: str) -> str:
    """Text that has UTF-8: a lone surrogate, which can stand in JSON, has none."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _decode(line: bytes) -> tuple[str, bool]:
    """The text of a line, and whether it was UTF-8. A byte order mark is no part of the text."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff"), True
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace").removeprefix("\ufeff"), False
