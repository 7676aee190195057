"""Tar shards of labelled pictures or rows with an index beside them: written reproducibly, read at any sample.

A shard is a plain WebDataset tar: of each sample ``KEY.jpg`` (or png, webp: what the bytes are, not what their file was
called), the bytes as they came, or ``KEY.npy``, and ``KEY.cls``, the label as ASCII digits. The index holds offset,
size, CRC-32 and label of every sample, so each is one positioned read.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nt_pretrain.data.files import whole_file
from nt_pretrain.data.images import Extension
from nt_pretrain.data.shards import LABELLED, Shard, index_path

KEY_CHARACTERS = 64
"""Of a file's name kept in its key; a ustar name has room for 100."""


class Sample(NamedTuple):
    key: str
    content: bytes
    extension: Extension | Literal["npy"]
    label: int


def key_of_picture(place: int, name: str) -> str:
    """A key that no other picture has: its place in the order of its split, and the name of its file to find it by.

    No dots: readers cut a member's name into key and extension at the first.
    """
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return f"{place:07d}-{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:KEY_CHARACTERS]}"


def write_labelled_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write tar ``path`` and its index; each appears complete or not at all, the tar last. Returns the number.

    The bytes depend on the samples alone, of which one is held at a time.
    """
    rows: list[tuple[int, int, int, int]] = []
    with whole_file(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                offset = tar.offset + tarfile.BLOCKSIZE
                rows.append((offset, len(sample.content), zlib.crc32(sample.content), sample.label))
                _add(tar, f"{sample.key}.{sample.extension}", sample.content)
                _add(tar, f"{sample.key}.cls", str(sample.label).encode())
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps what it wrote
        with whole_file(index_path(path)) as index_file:
            np.save(index_file, np.array(rows, dtype=LABELLED))
    return len(rows)


def labels_of(shard: Shard) -> np.ndarray:
    """Labels (uint32) of a shard's samples in their order."""
    found: np.ndarray = shard.index["label"]
    return found


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
