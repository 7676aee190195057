"""Documents to shards: split by hash, put in hash order, written reproducibly, checked.

A document's place follows from the hash of its text alone: which split it belongs to (so copies of a text never stand on
both sides) and where in the shards it comes (so every shard is a fair sample). Documents first go to buckets on disk by
their hash, then each bucket is sorted in memory, so corpora larger than memory are no problem.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nt_pretrain import __version__
from nt_pretrain.data.documents import Problems, find_files, read_documents
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, file_sha256, read_manifest
from nt_pretrain.data.shards import index_path, write_shard
from nt_pretrain.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
BUCKET_BYTES = 256_000_000
"""Text sorted in memory at once."""
Progress = Callable[[str, int, int], None]
"""(what is done, units done, units in all), called often."""


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare_text` has made."""

    train: Manifest
    validation: Manifest
    problems: Problems


def prepare_text(
    inputs: list[Path],
    out: Path,
    *,
    name: str,
    validation_share: float,
    shard_bytes: int,
    tokenizer: Tokenizer | None,
    progress: Progress,
) -> Prepared:
    """Write ``out/train`` and ``out/validation``, shards with index and manifest.

    Each split's manifest is written last; a folder without it is not prepared and is made anew.

    Args:
        name: first part of the shards' names.
        validation_share: share of documents held out, by hash.
        shard_bytes: size after which a new shard begins.
        tokenizer: write token numbers instead of text.
        progress: told how far it is.

    Raises:
        DataError: inputs cannot be read, or a split would hold nothing.
    """
    files = find_files(inputs)
    problems = Problems()
    spool = out / "unsorted.tmp"
    shutil.rmtree(spool, ignore_errors=True)
    buckets = max(1, sum(file.stat().st_size for file in files) * 4 // BUCKET_BYTES)
    try:
        _spool(files, spool, buckets, validation_share, problems, progress)
        manifests = {}
        for split in SPLITS:
            folder = out / split
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            documents = _sorted_documents(spool, split, buckets, progress)
            shards = _write_split(documents, folder, f"{name}-{split}", shard_bytes, tokenizer)
            if not shards:
                raise DataError(
                    f"the {split} split is empty: too few documents for --validation-share {validation_share}"
                )
            manifests[split] = _manifest(name, split, shards, files, validation_share, tokenizer)
        for split in SPLITS:
            (out / split / FILE).write_text(manifests[split].to_text(), encoding="utf-8")
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    return Prepared(manifests["train"], manifests["validation"], problems)


def _spool(
    files: list[Path], spool: Path, buckets: int, share: float, problems: Problems, progress: Progress
) -> None:
    """Write every document to the bucket of its split and hash: hash, length, text."""
    spool.mkdir(parents=True)
    limit = int(share * 2**64)
    with ExitStack() as stack:
        opened: dict[tuple[str, int], BinaryIO] = {}
        for done, path in enumerate(files):
            progress(f"reading {path.name}", done, len(files))
            for text in read_documents(path, problems):
                encoded = text.encode()
                digest = hashlib.sha256(encoded).digest()
                split = "validation" if int.from_bytes(digest[:8], "little") < limit else "train"
                bucket = int.from_bytes(digest[8:16], "big") * buckets >> 64
                if (split, bucket) not in opened:
                    opened[split, bucket] = stack.enter_context((spool / f"{split}-{bucket:06d}").open("wb"))
                opened[split, bucket].write(digest[8:] + struct.pack("<Q", len(encoded)) + encoded)
        progress("reading", len(files), len(files))


def _sorted_documents(spool: Path, split: str, buckets: int, progress: Progress) -> Iterator[str]:
    """Documents of a split in the order of their hashes."""
    for bucket in range(buckets):
        progress(f"writing {split}", bucket, buckets)
        path = spool / f"{split}-{bucket:06d}"
        if not path.exists():
            continue
        content = path.read_bytes()
        rows, place = [], 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place + 24)
            rows.append((content[place : place + 24], place + 32, length))
            place += 32 + length
        for _, start, length in sorted(rows):
            yield content[start : start + length].decode()
    progress(f"writing {split}", buckets, buckets)


def _write_split(
    documents: Iterator[str], folder: Path, name: str, shard_bytes: int, tokenizer: Tokenizer | None
) -> list[ShardEntry]:
    shards: list[ShardEntry] = []
    rows: list[bytes] = []
    size = 0

    def close() -> None:
        path = folder / f"{name}-{len(shards):06d}.tar"
        write_shard(path, rows, "jsonl" if tokenizer is None else "tokens")
        entry = ShardEntry(
            path.name, len(rows), path.stat().st_size, file_sha256(path), file_sha256(index_path(path))
        )  # fmt: skip
        shards.append(entry)
        rows.clear()

    for text in documents:
        row = _row(text, tokenizer)
        if rows and size + len(row) > shard_bytes:
            close()
            size = 0
        rows.append(row)
        size += len(row)
    if rows:
        close()
    return shards


def _row(text: str, tokenizer: Tokenizer | None) -> bytes:
    if tokenizer is None:
        return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
    return tokenizer.encode(text).astype(token_dtype(tokenizer)).tobytes()


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every token."""
    return np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")


def _manifest(
    name: str, split: str, shards: list[ShardEntry], files: list[Path], share: float, tokenizer: Tokenizer | None
) -> Manifest:
    return Manifest(
        version=1,
        name=name,
        split=split,
        format="text" if tokenizer is None else "tokens",
        shards=shards,
        sources=[file.name for file in files],
        split_rule=f"validation: first 8 bytes of the text's sha256, little-endian, below {share} x 2**64",
        tool=f"nt_pretrain {__version__}",
        tokenizer="" if tokenizer is None else tokenizer.sha256,
        dtype="" if tokenizer is None else token_dtype(tokenizer).str,
    )


def is_prepared(out: Path) -> bool:
    return all((out / split / FILE).exists() for split in SPLITS)


def verify(out: Path, progress: Progress) -> list[str]:
    """Check every shard and index against the manifests; one line for each that is not what was written."""
    wrong = []
    for split in SPLITS:
        folder = out / split
        manifest = read_manifest(folder)
        for done, entry in enumerate(manifest.shards):
            progress(f"checking {split}", done, len(manifest.shards))
            path = folder / entry.name
            for file, sha256 in ((path, entry.sha256), (index_path(path), entry.index_sha256)):
                if not file.exists():
                    wrong.append(f"{file}: is missing")
                elif file_sha256(file) != sha256:
                    wrong.append(f"{file}: is not what the manifest lists (sha256)")
        progress(f"checking {split}", len(manifest.shards), len(manifest.shards))
    return wrong
