"""What `launch/bench.py data` reads: texts, and the same documents as our shards and as others write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from bench_images import made_jpegs

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.labelled_shards import Sample, write_labelled_shard
from nt_pretrain.data.manifest import Format, Manifest, ShardEntry, file_sha256
from nt_pretrain.data.preparation.documents import Problems, find_files, read_documents
from nt_pretrain.data.shards import index_path, write_shard

ROW_CHARACTERS = 2_900
"""Of the documents that are read as members: with their JSON about 3 KB."""
JPEG_SHAPE = 345, 460
"""Height and width; such a picture has about 44 KB."""
META = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/a-page-of-a-usual-length.html"}


def read_texts(folder: Path) -> list[str]:
    """All documents of a folder of text or json lines, their order shuffled.

    Raises:
        DataError: there are none.
    """
    problems = Problems()
    found = [document.text for file in find_files(folder) for document in read_documents(file, problems)]
    if not found:
        raise DataError(f"{folder}: no documents in it")
    # Files of one source lie together: any part of the whole should be a fair sample of it.
    return [found[place] for place in np.random.Generator(np.random.PCG64(0)).permutation(len(found))]


def made_texts(megabytes: float) -> list[str]:
    """Documents of made-up words that occur as often as the words of a language do (Zipf's law)."""
    draw = np.random.Generator(np.random.PCG64(0))
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t", "l")]
    lengths = draw.choice([1, 2, 3, 4], 60_000, p=[0.15, 0.4, 0.3, 0.15])
    words = ["".join(syllables[i] for i in draw.integers(0, len(syllables), length)) for length in lengths]
    ranks = np.arange(1, len(words) + 1)
    chances = 1 / ranks / (1 / ranks).sum()
    texts, size = [], 0
    while size < megabytes * 1e6:
        picked = draw.choice(len(words), int(draw.lognormal(5.6, 1.0)) + 8, p=chances)
        marks = draw.choice([" ", ", ", ". ", "\n"], len(picked), p=[0.85, 0.07, 0.06, 0.02])
        texts.append("".join(words[word] + str(mark) for word, mark in zip(picked, marks, strict=True)))
        size += len(texts[-1])
    return texts


def part_of(texts: list[str], megabytes: float) -> list[str]:
    """The first documents, up to so many megabytes of characters."""
    ends = np.cumsum([len(text) for text in texts])
    return texts[: max(1, int((ends <= megabytes * 1e6).sum()))]


def pieces_of(texts: list[str], count: int) -> list[str]:
    """Documents of ROW_CHARACTERS, as many as wanted; a small text is gone through again."""
    whole = "\n".join(texts)
    starts = range(0, max(1, len(whole) - ROW_CHARACTERS), ROW_CHARACTERS)
    found = [whole[start : start + ROW_CHARACTERS] for start in starts[:count]]
    return [found[n % len(found)] for n in range(count)]


def write_members(path: Path, texts: Iterable[str]) -> None:
    """A tar as WebDataset's users write it: KEY.txt and KEY.json of every document."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, text in enumerate(texts):
            for extension, content in (("txt", text.encode()), ("json", json.dumps(META).encode())):
                info = tarfile.TarInfo(f"{number:08d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def row(text: str) -> bytes:
    return json.dumps({"text": text, **META}, ensure_ascii=False).encode() + b"\n"


def write_split(
    folder: Path, kind: Format, documents: Sequence[bytes], shards: int, *, tokenizer: str = "", dtype: str = ""
) -> Manifest:
    """Write documents as a split of ``shards`` equal shards."""
    folder.mkdir(parents=True)
    entries = []
    for number in range(shards):
        path = folder / f"bench-train-{number:06d}.tar"
        part = documents[len(documents) * number // shards : len(documents) * (number + 1) // shards]
        write_shard(path, part, "tokens" if kind == "tokens" else "jsonl")
        entries.append(_entry(path, len(part)))
    return Manifest(1, "bench", "train", kind, entries, [], "", "bench", tokenizer, dtype)


def write_pictures(path: Path, count: int) -> int:
    """Write a shard of made JPEGs and their labels; returns the bytes of an average one."""
    jpegs = made_jpegs(*JPEG_SHAPE)
    extension: Literal["jpg"] = "jpg"
    write_labelled_shard(path, (Sample(f"{n:07d}", jpegs[n % len(jpegs)], extension, n % 1000) for n in range(count)))
    return sum(map(len, jpegs)) // len(jpegs)


def _entry(path: Path, documents: int) -> ShardEntry:
    return ShardEntry(path.name, documents, path.stat().st_size, file_sha256(path), file_sha256(index_path(path)))
