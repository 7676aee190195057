"""Tar shards of documents with an index beside them: written reproducibly, read at any document.

A shard is a plain WebDataset tar: members ``00000000.jsonl`` hold up to 256 rows ``{"text": ...}``, members
``00000000.tokens`` up to 256 documents of token numbers. ``NAME.idx.npy`` beside it holds offset, size and CRC-32 of
every document inside the tar, so a document is one positioned read, whatever came before. Shards of pictures
(``image_shards``) have an index with a label more and are read in the same way, a picture in the place of a document.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import whole_file

DOCUMENTS_PER_MEMBER = 256
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
LABELLED = np.dtype([*INDEX.descr, ("label", "<u4")])


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
    """A shard that can be read at any document. Reads are positioned, so processes may share the open file."""

    path: Path
    index: np.ndarray
    descriptor: int

    @staticmethod
    def open(path: Path) -> Shard:
        """Open a shard and its index.

        Raises:
            DataError: one of them is missing or damaged.
        """
        try:
            index = np.load(index_path(path), mmap_mode="r")
            if index.dtype not in (INDEX, LABELLED) or index.ndim != 1:
                raise ValueError(f"{index_path(path).name} is no index of documents")
            descriptor = os.open(path, os.O_RDONLY)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be opened: {error}; check it with launch/prepare.py verify") from None
        return Shard(path, index, descriptor)

    def __len__(self) -> int:
        return len(self.index)

    def close(self) -> None:
        os.close(self.descriptor)

    def document(self, number: int) -> bytes:
        """The encoded document ``number`` of the shard.

        Raises:
            DataError: the bytes cannot be read or are not those that were written.
        """
        offset, size, crc = self.index[number].item()[:3]
        where = f"{self.path}: document {number} (bytes {offset} to {offset + size})"
        try:
            content = os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error}") from None
        if len(content) != size or zlib.crc32(content) != crc:
            reason = "the file ends before it" if len(content) != size else "its checksum is not that of the index"
            raise DataError(
                f"{where} is damaged: {reason}. Run launch/prepare.py verify on the corpus and prepare it again, or "
                "copy this file again."
            )
        return content
