"""Lines of files, compressed or not, of which no line can fill the memory."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ENDINGS = (".gz", ".zst")
_READ = 1 << 20
_ZSTD_READ = 1 << 13
"""A block of zstandard can stand for 30,000 times its bytes, so little is unpacked at once."""


@contextmanager
def decompressed(path: Path, raw: io.BufferedReader) -> Iterator[io.BufferedReader]:
    """Content of a file, decompressed if its name says so."""
    name = path.name.lower()
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=raw, mode="rb") as file:
            yield io.BufferedReader(file, _READ)
    elif name.endswith(".zst"):
        yield io.BufferedReader(_Unpacked(raw), _READ)
    else:
        yield raw


def rows(file: io.BufferedReader, limit: int) -> Iterator[bytes | None]:
    """Lines of a file; None in the place of one longer than ``limit`` bytes, which is not kept."""
    for line in iter(partial(file.readline, limit), b""):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_READ)
        yield None


def text_lines(file: io.BufferedReader, limit: int) -> Iterator[bytes]:
    """Lines of a file; those longer than ``limit`` bytes in parts, none of which ends inside a UTF-8 character."""
    held = b""
    for line in iter(partial(file.readline, limit), b""):
        whole = held + line
        cut = len(whole)
        if len(line) == limit and not line.endswith(b"\n"):
            cut = _last_character(whole)
        yield whole[:cut]
        held = whole[cut:]
    if held:
        yield held


def _last_character(content: bytes) -> int:
    """Where the last character begins if it may be incomplete, else the end."""
    for back in range(1, min(4, len(content)) + 1):
        byte = content[-back]
        if byte >= 0xC0:
            return len(content) - back
        if byte < 0x80:
            break
    return len(content)


class _Unpacked(io.RawIOBase):
    """Content of a zstandard file of any number of frames.

    Reading raises EOFError if it ends inside a frame, which zstandard's own reader takes for the end.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._ready:
            self._packed = self._packed or self._raw.read(_ZSTD_READ)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends in the middle; it was not copied completely")
                return 0
            if self._frame is None:
                # Files made with zstd --long need windows larger than the default.
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
