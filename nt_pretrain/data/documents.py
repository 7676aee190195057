"""Reads documents from what people have: text files, json lines (gzip, zstandard), folders of either, C4's layout."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from nt_pretrain.data.errors import DataError

TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")
ROW_ENDINGS = (".jsonl", ".json")
COMPRESSED = (".gz", ".zst")
KEPT_FIELDS = ("timestamp", "url")
"""Fields of a row that are kept beside its text: those of C4."""
LONGEST = 1_000_000
"""Characters after which a document is cut: reader processes hold and tokenize whole documents."""
_READ = 1 << 20


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

    def lines(self) -> list[str]:
        return [f"{count:,} {kind} (first: {self.first[kind]})" for kind, count in self.counts.items()]


def find_files(path: Path) -> list[Path]:
    """The files to read of an input, sorted, so that the same input is always read in the same order.

    In a folder, files of other kinds and hidden ones are passed over.

    Raises:
        DataError: the input is not there, or nothing in it can be read.
    """
    known = ", ".join(TEXT_ENDINGS + ROW_ENDINGS)
    if path.is_file():
        if not _kind(path):
            raise DataError(f"{path}: unknown kind of file; known are {known}, also with .gz or .zst")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder")
    inside = (each for each in path.rglob("*") if not any(p.startswith(".") for p in each.relative_to(path).parts))
    found = sorted(each for each in inside if each.is_file() and _kind(each))
    if not found:
        raise DataError(f"{path}: no text in this folder; files are known by {known}, also with .gz or .zst")
    return found


def read_documents(
    path: Path, problems: Problems, *, longest: int = LONGEST, at: Callable[[int], None] = lambda _: None
) -> Iterator[Document]:
    """The documents of one file: each row's ``text`` of json lines, or the whole of a text file.

    What cannot be used is left out and counted in ``problems`` by its reason. Documents of more than ``longest``
    characters are cut at line ends. ``at`` is told the bytes of the file read so far.

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    try:
        with path.open("rb") as raw, _decompressed(path, raw) as lines:
            make = _of_text if _kind(path) == "text" else _of_rows
            for number, document in enumerate(make(lines, str(path), problems, longest)):
                if number % 64 == 0:
                    at(raw.tell())
                yield document
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _of_text(lines: Iterable[bytes], where: str, problems: Problems, longest: int) -> Iterator[Document]:
    damaged = False

    def decoded() -> Iterator[str]:
        nonlocal damaged
        for line in lines:
            text, whole = _decode(line)
            damaged |= not whole
            yield text

    yield from _usable(decoded(), {}, where, problems, longest)
    if damaged:
        problems.add("documents with bytes that are not UTF-8, which were replaced", where)


def _of_rows(lines: Iterable[bytes], name: str, problems: Problems, longest: int) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        decoded, whole = _decode(line)
        try:
            row = json.loads(decoded)
            text = row["text"]
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.add('rows left out, since they are no JSON object with a "text"', where)
            continue
        if not whole:
            problems.add("documents with bytes that are not UTF-8, which were replaced", where)
        meta = {key: row[key] for key in KEPT_FIELDS if isinstance(row.get(key), str)}
        parts = [text] if len(text) <= longest else text.splitlines(keepends=True)
        yield from _usable(parts, meta, where, problems, longest)


def _usable(
    parts: Iterable[str], meta: dict[str, str], where: str, problems: Problems, longest: int
) -> Iterator[Document]:
    """Documents of the text that ``parts`` make together, without empty ones."""
    number = 0
    for piece in _pieces(parts, longest):
        # A lone surrogate can stand in JSON, but has no UTF-8.
        text = piece.encode("utf-8", "replace").decode("utf-8").strip()
        if text:
            number += 1
            yield Document(text, meta)
    if number == 0:
        problems.add("empty documents left out", where)
    if number > 1:
        problems.add(f"documents cut into pieces of at most {longest:,} characters", where)


def _pieces(parts: Iterable[str], longest: int) -> Iterator[str]:
    """The parts joined to pieces of at most ``longest`` characters; a longer part is cut where it must be."""
    held: list[str] = []
    size = 0
    for part in parts:
        if held and size + len(part) > longest:
            yield "".join(held)
            held, size = [], 0
        while len(part) > longest:
            yield part[:longest]
            part = part[longest:]
        held.append(part)
        size += len(part)
    yield "".join(held)


def _decode(line: bytes) -> tuple[str, bool]:
    """The text of a line, and whether it was UTF-8. A byte order mark is no part of the text."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff"), True
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace").removeprefix("\ufeff"), False


def _kind(path: Path) -> str:
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    if name.endswith(TEXT_ENDINGS):
        return "text"
    return "rows" if name.endswith(ROW_ENDINGS) else ""


@contextmanager
def _decompressed(path: Path, raw: io.BufferedReader) -> Iterator[Iterable[bytes]]:
    """Lines of a file, decompressed if its name says so."""
    name = path.name.lower()
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=raw, mode="rb") as file:
            yield file
    elif name.endswith(".zst"):
        yield _lines(_unpacked(raw))
    else:
        yield raw


def _unpacked(raw: io.BufferedReader) -> Iterator[bytes]:
    """Content of a zstandard file of any number of frames.

    Raises:
        EOFError: it ends inside a frame, which zstandard's own reader takes for the end.
    """
    frame = None
    while chunk := raw.read(_READ):
        while chunk:
            if frame is None:
                # Files made with zstd --long need windows larger than the default.
                frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle; it was not copied completely")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for chunk in chunks:
        for line in io.BytesIO(chunk):
            held.append(line)
            if line.endswith(b"\n"):
                yield b"".join(held)
                held = []
    if held:
        yield b"".join(held)
