"""What people give to be prepared: files, folders, and URLs, of which one may stand for many by braces or stars."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec
from braceexpand import braceexpand

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.documents import KNOWN, find_files, kind_of
from nt_pretrain.data.storage.remote_errors import in_words, lasting, shown_url

MOST_FILES = 1_000_000
"""Of one input; braces with a digit too many stand for more than anybody has."""
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
        place: its path, or its URL.
        name: its name inside its input.
        size: bytes; None for a URL, whose server need not tell.
    """

    place: str
    name: str
    size: int | None

    @property
    def called(self) -> str:
        """What messages call it."""
        return self.place if self.size is not None else shown_url(self.place)


@dataclass(frozen=True)
class Input:
    """Files of one input in the order they are read; ``name`` goes into the manifest, without folders of a machine."""

    name: str
    files: list[InputFile]


def find_inputs(inputs: Sequence[str | Path]) -> list[Input]:
    """The files of every input.

    Raises:
        DataError: an input is not there, or nothing in it can be read.
    """
    found = []
    for each in inputs:
        if is_url(str(each)):
            found.append(_remote(str(each)))
        elif "{" in str(each) and not Path(each).exists():
            found += [_local(Path(path)) for path in _expanded(str(each))]
        else:
            found.append(_local(Path(each)))
    return found


def is_url(text: str) -> bool:
    return "://" in text


def file_name(url: str) -> str:
    """The last part of a URL's path."""
    return PurePosixPath(urlsplit(shown_url(url)).path).name


def _local(path: Path) -> Input:
    files = [
        InputFile(str(file), file.relative_to(path).as_posix() if path.is_dir() else file.name, file.stat().st_size)
        for file in find_files(path)
    ]
    return Input(path.resolve().name, files)


def _remote(url: str) -> Input:
    found: list[str] = []
    for each in _expanded(url):
        found += _globbed(each) if "*" in each else [each]
    unknown = [each for each in found if not kind_of(file_name(each))]
    if unknown:
        raise DataError(f"{shown_url(unknown[0])}: unknown kind of file; known are {KNOWN}")
    return Input(shown_url(url), [InputFile(each, file_name(each), None) for each in found])


def _expanded(pattern: str) -> list[str]:
    # Counted first: all numbers of a range are made before the first is given.
    count = math.prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern))
    if count > MOST_FILES:
        raise DataError(f"{shown_url(pattern)}: these braces stand for more than {MOST_FILES:,} files")
    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise DataError(f"{shown_url(pattern)}: its braces do not match; write {{00000..01023}} or {{a,b}}") from None


def _globbed(url: str) -> list[str]:
    if url.startswith(("http://", "https://")):
        raise DataError(
            f"{shown_url(url)}: a web server does not list its files; name them with braces, such as {{00000..01023}}"
        )
    try:
        system, path = fsspec.url_to_fs(url)
        found = sorted(str(system.unstrip_protocol(each)) for each in system.glob(path))
    except Exception as error:  # of any driver
        final = lasting(error)
        raise DataError(f"{shown_url(url)}: cannot be listed: {final[1] if final else in_words(error)}") from None
    known = [each for each in found if kind_of(file_name(each))]
    if not known:
        raise DataError(f"{shown_url(url)}: no text there; files are known by {KNOWN}")
    return known
