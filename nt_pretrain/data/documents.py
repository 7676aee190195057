"""Reads documents from what people have: text files, json lines (gzip, zstandard), folders of either, C4's layout."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from nt_pretrain.data.errors import DataError

TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")
ROW_ENDINGS = (".jsonl", ".json")
COMPRESSED = (".gz", ".zst")


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


def find_files(inputs: list[Path]) -> list[Path]:
    """The files to read, sorted inside each folder, so that the same input is always read in the same order.

    Raises:
        DataError: an input is not there, or nothing readable was found.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found += sorted(each for each in path.rglob("*") if each.is_file() and _kind(each))
        elif path.is_file():
            if not _kind(path):
                raise DataError(f"{path}: unknown kind of file; known: {', '.join(TEXT_ENDINGS + ROW_ENDINGS)} (.gz, .zst)")
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder")
    if not found:
        raise DataError(f"no text files in {', '.join(map(str, inputs))}")
    return found


def read_documents(path: Path, problems: Problems) -> Iterator[str]:
    """The documents of one file: each row's ``text`` of json lines, or the whole of a text file.

    What cannot be used is left out and counted in ``problems`` by its reason.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with _opened(path) as lines:
            if _kind(path) == "text":
                yield from _usable(lines.read(), str(path), problems)
                return
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text = json.loads(line)["text"]
                    if not isinstance(text, str):
                        raise TypeError
                except (ValueError, KeyError, TypeError):
                    problems.add("rows left out: no JSON object with a text", f"{path}:{number}")
                    continue
                yield from _usable(text, f"{path}:{number}", problems)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _usable(text: str, where: str, problems: Problems) -> Iterator[str]:
    if "\ufffd" in text:
        problems.add("documents with bytes that are not UTF-8, which were replaced", where)
    # A lone surrogate can stand in JSON, but has no UTF-8.
    text = text.encode("utf-8", "replace").decode("utf-8").strip()
    if text:
        yield text
    else:
        problems.add("empty documents left out", where)


def _kind(path: Path) -> str:
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    if name.endswith(TEXT_ENDINGS):
        return "text"
    return "rows" if name.endswith(ROW_ENDINGS) else ""


def _opened(path: Path) -> io.TextIOWrapper:
    name = path.name.lower()
    if name.endswith(".gz"):
        raw: io.BufferedIOBase = gzip.open(path, "rb")  # type: ignore[assignment]
    elif name.endswith(".zst"):
        raw = zstandard.open(path, "rb")
    else:
        raw = path.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="\n")  # type: ignore[arg-type]
