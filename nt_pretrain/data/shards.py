"""Tar shards of documents with an index beside them: written reproducibly, read at any document.

A shard is a plain WebDataset tar: members ``00000000.jsonl`` hold up to 256 rows ``{"text": ...}``, members
``00000000.tokens`` up to 256 documents of token numbers. ``NAME.idx.npy`` beside it holds offset, size and CRC-32 of
every document inside the tar, so a document is one positioned read, whatever came before. Shards of pictures
and rows (``labelled_shards``) have an index with a label more and are read in the same way, a sample in the place of a
document.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import io
import os
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from nt_pretrain.data.errors import BadInput
from nt_pretrain.data.files import whole_file

DOCUMENTS_PER_MEMBER = 256
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
LABELLED = np.dtype([*INDEX.descr, ("label", "<u4")])
ATTEMPTS, SECONDS_BETWEEN = 3, 0.2
"""Of reads that the system refuses; a network disk may answer the next."""
CHECK_VERIFY = "check it with launch/prepare.py verify"
_MAGIC, _START = b"\x93NUMPY\x01\x00", struct.Struct("<8sH")
_ROW = struct.Struct("<QII")
"""Offset, size and CRC-32 of a row of either index."""
_LABEL = struct.Struct("<I")
"""What follows them in a row of LABELLED."""


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".idx.npy")


def write_shard(path: Path, documents: Sequence[bytes], extension: str) -> None:
    """Write encoded documents as tar ``path`` and its index; each appears complete or not at all, the tar last.

    The bytes depend on the documents alone: no time, owner or machine enters.
    """
    index = np.empty(len(documents), dtype=INDEX)
    with whole_file(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, start in enumerate(range(0, len(documents), DOCUMENTS_PER_MEMBER)):
                part = documents[start : start + DOCUMENTS_PER_MEMBER]
                info = tarfile.TarInfo(f"{number:08d}.{extension}")
                info.size, info.mode = sum(map(len, part)), 0o644
                offset = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(info, io.BytesIO(b"".join(part)))
                for row, document in enumerate(part, start):
                    index[row] = (offset, len(document), zlib.crc32(document))
                    offset += len(document)
        with whole_file(index_path(path)) as index_file:
            np.save(index_file, index)


@dataclass(frozen=True)
class Shard:
    """A shard that can be read at any document. Reads are positioned, so processes may share the open file.

    The tar may also lie elsewhere: then ``descriptor`` is None and ``pread`` fetches (bytes, from offset).

    The index is held in memory (16 bytes a document, 20 a picture): a file mapped into memory that somebody cuts off
    kills the process that looks at it.

    Attributes:
        name: what it is called in messages: path or URL.
        index: rows of dtype INDEX or LABELLED.
        size: bytes of the tar when it was opened.
        rows, first, row_bytes: the bytes of the index file, where its rows begin in them, and bytes of a row.
    """

    name: str
    index: np.ndarray
    pread: Callable[[int, int], bytes]
    descriptor: int | None
    size: int
    rows: bytes
    first: int
    row_bytes: int

    @staticmethod
    def open(
        path: Path,
        *,
        bytes: int | None = None,
        index_sha256: str | None = None,
        index: BinaryIO | None = None,
        name: str = "",
    ) -> Shard:
        """Open a shard and its index, and check both as far as can be done without reading the shard.

        Args:
            bytes: size of the tar by the manifest.
            index_sha256: hash of the index file by the manifest.
            index: the index, if it is not a file beside the shard.
            name: what the shard is called in messages, if not by its path.

        Raises:
            BadInput: one of them is missing, cannot be read, or is not what the manifest lists.
        """
        name = name or str(path)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _not_opened(name, error) from None
        try:
            size = os.fstat(descriptor).st_size
            if bytes is not None and size != bytes:
                raise BadInput(
                    "changed shard",
                    f"{name}: has {size:,} bytes, the manifest says {bytes:,}; it was changed or cut off after it was "
                    "prepared. Copy it again, or prepare the data again",
                )
            with index or _opened(name, index_path(path)) as file:
                table, rows, first = _read_index(name, file, size, index_sha256, whole=bytes is not None)
            pread = partial(os.pread, descriptor)
            return Shard(name, table, pread, descriptor, size, rows, first, table.dtype.itemsize)
        except BaseException:
            os.close(descriptor)
            raise

    @staticmethod
    def elsewhere(name: str, index: BinaryIO, pread: Callable[[int, int], bytes], *, bytes: int) -> Shard:
        """A shard of ``bytes`` bytes that ``pread`` reads (bytes, from offset), with its index at hand.

        Raises:
            BadInput: the index cannot be read or does not fit.
        """
        table, rows, first = _read_index(name, index, bytes, None, whole=True)
        return Shard(name, table, pread, None, bytes, rows, first, table.dtype.itemsize)

    def __len__(self) -> int:
        return len(self.index)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)

    def label(self, number: int) -> int:
        """The label of sample ``number`` of the shard; -1 where the index has none."""
        if self.row_bytes != LABELLED.itemsize:
            return -1
        label: int = _LABEL.unpack_from(self.rows, self.first + number * self.row_bytes + _ROW.size)[0]
        return label

    def document(self, number: int) -> bytes:
        """The encoded document ``number`` of the shard.

        Raises:
            BadInput: the bytes cannot be read or are not those that were written.
        """
        assert number >= 0, f"document {number} of {len(self)}"  # one too large is an error of struct
        offset, size, crc = _ROW.unpack_from(self.rows, self.first + number * self.row_bytes)
        if offset + size > self.size:  # before the read: it would ask for up to 4 GB of memory
            raise self._damaged(number, "truncated shard", "the file ends before it")
        try:
            content = self.pread(size, offset)
        except OSError as error:
            content = self._read_again(number, error)
        if len(content) != size:
            content = self._rest(number, content)
        if zlib.crc32(content) != crc:
            raise self._damaged(number, "damaged document", "its checksum is not that of the index")
        return content

    def _read_again(self, number: int, error: OSError) -> bytes:
        offset, size, _ = _ROW.unpack_from(self.rows, self.first + number * self.row_bytes)
        for _ in range(ATTEMPTS - 1):
            time.sleep(SECONDS_BETWEEN)
            try:
                return self.pread(size, offset)
            except OSError as again:
                error = again
        words = f"{self._where(number)} cannot be read: {error} ({ATTEMPTS} attempts)"
        raise BadInput("unreadable", words, of_document=True, size=size) from None

    def _rest(self, number: int, content: bytes) -> bytes:
        """All of a document of which a read returned ``content``: Linux reads at most 2 GB at once."""
        offset, size, _ = _ROW.unpack_from(self.rows, self.first + number * self.row_bytes)
        parts, got = [content], len(content)
        while got < size:
            try:
                parts.append(self.pread(size - got, offset + got))
            except OSError as error:
                words = f"{self._where(number)} cannot be read: {error}"
                raise BadInput("unreadable", words, of_document=True, size=size) from None
            if not parts[-1]:
                raise self._damaged(number, "truncated shard", "the file ends before it")
            got += len(parts[-1])
        return b"".join(parts)

    def _where(self, number: int) -> str:
        offset, size, _ = _ROW.unpack_from(self.rows, self.first + number * self.row_bytes)
        return f"{self.name}: document {number} (bytes {offset} to {offset + size})"

    def _damaged(self, number: int, kind: str, reason: str) -> BadInput:
        return BadInput(
            kind,
            f"{self._where(number)} is damaged: {reason}. Run launch/prepare.py verify on the corpus and prepare it "
            "again, or copy this file again.",
            of_document=True,
            size=_ROW.unpack_from(self.rows, self.first + number * self.row_bytes)[1],
        )


def _opened(name: str, index: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, index.open("rb", buffering=0))  # each byte is read once
    except OSError as error:
        raise _not_opened(name, error) from None


def _read_index(
    name: str, file: BinaryIO, size: int, sha256: str | None, *, whole: bool
) -> tuple[np.ndarray, bytes, int]:
    """Rows of the index of shard ``name``, the bytes of its file, and where the rows begin in them.

    Args:
        size: bytes of the tar.
        whole: the tar is known to be whole, so a document outside it is the index's fault.
    """
    try:
        dtype, count = _header(file)
        first, length = file.tell(), file.seek(0, io.SEEK_END)
        # All this before anything as long as the file claims is put into memory.
        if count > size or length != first + count * dtype.itemsize:
            raise ValueError(f"it has no index of documents: {length:,} bytes for {count:,} rows")
        file.seek(0)
        content = file.read(length)
    except OSError as error:
        raise _not_opened(name, error) from None
    except ValueError as error:
        raise _damaged_index(name, str(error)) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged_index(name, "the index is not what the manifest lists (sha256)")
    index = np.frombuffer(content, dtype, offset=first)
    if whole and len(index):
        offsets = index["offset"]
        outside = (offsets > size) | (offsets + index["size"] > size)
        if outside.any():
            number = int(outside.argmax())
            where = f"bytes {offsets[number]} to {int(offsets[number]) + int(index['size'][number])}"
            raise _damaged_index(name, f"the index puts document {number} at {where} of {size}")
    return index, content, first


def _header(file: BinaryIO) -> tuple[np.dtype[np.void], int]:
    """Type and number of rows of an index file, which is left at its first row.

    Not by numpy: its reader mends headers of old versions, and fails in many ways at those of none.

    Raises:
        ValueError: it is no index.
    """
    try:
        magic, length = _START.unpack(file.read(_START.size))
        found = ast.literal_eval(file.read(length).decode("latin-1"))
        (count,) = found["shape"]
        dtype = next(each for each in (INDEX, LABELLED) if each.descr == found["descr"])
        if magic != _MAGIC or type(count) is not int or count < 0:
            raise ValueError(f"shape {found['shape']}")
        return dtype, count
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, StopIteration, struct.error):
        raise ValueError(f"{Path(file.name).name} is no index of documents") from None


def _not_opened(name: str, error: OSError) -> BadInput | OSError:
    """What is wrong with a shard, or with this process, which is no fault of the shard's."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return error
    kind = "missing shard" if isinstance(error, FileNotFoundError) else "unreadable"
    return BadInput(kind, f"{name}: cannot be opened: {error}; {CHECK_VERIFY}")


def _damaged_index(name: str, reason: str) -> BadInput:
    return BadInput("damaged index", f"{name}: cannot be opened: {reason}; {CHECK_VERIFY}")
