"""A run that goes on far into a large corpus: 100,000 shards of 1,250 documents, of which hardly any exist here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.lane import Lane, Reading
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, file_sha256, read_manifest
from nt_pretrain.data.order import Order
from nt_pretrain.data.shards import index_path, write_shard
from nt_pretrain.data.storage.store import Folder
from nt_pretrain.data.text import Cursor, Sequence, packed
from nt_pretrain.data.tokenizer import Tokenizer

SHARDS, DOCUMENTS, SAMPLE = 100_000, 1_250, 100_000_000
LANES, WINDOW, SEED = 8, 4096, 0


@dataclass(frozen=True)
class FarRun:
    """What going on there took: seconds for the manifest, and from it to the first sequence of every lane."""

    manifest_seconds: float
    first_seconds: float
    sequences: list[Sequence]


def write_far_corpus(folder: Path) -> list[int]:
    """Write the manifest of the corpus, and the shards that the lanes touch around SAMPLE; returns their numbers."""
    order = Order([DOCUMENTS] * SHARDS, SEED, LANES, WINDOW)
    window = SAMPLE // LANES // WINDOW
    touched = sorted({shard for lane in range(LANES) for shard in order.shards_of_window(0, lane, window)})
    entries = [ShardEntry(f"far-train-{n:06d}.tar", DOCUMENTS, 1, "0" * 64, "0" * 64) for n in range(SHARDS)]
    folder.mkdir(parents=True)
    for shard in touched:
        path = folder / entries[shard].name
        rows = [json.dumps({"text": f"shard {shard} document {n}"}).encode() + b"\n" for n in range(DOCUMENTS)]
        write_shard(path, rows, "jsonl")
        hashes = file_sha256(path), file_sha256(index_path(path))
        entries[shard] = ShardEntry(path.name, DOCUMENTS, path.stat().st_size, *hashes)
    manifest = Manifest(1, "far", "train", "text", entries, [], "", "bench")
    (folder / FILE).write_text(manifest.to_text(), encoding="utf-8")
    return touched


def go_on_far(
    folder: Path, tokenizer: Tokenizer, length: int, known_manifest: Callable[[], None] = lambda: None
) -> FarRun:
    """Read one sequence of every lane at SAMPLE, as a run does that is started there.

    ``known_manifest`` is called once the manifest is read.
    """
    begin = time.perf_counter()
    split = Split(Folder(folder), read_manifest(folder), tokenizer)
    known_manifest()
    known = time.perf_counter()
    order = order_of(split, seed=SEED, lanes=LANES, window=WINDOW)
    sequences = []
    for number in range(LANES):
        lane = Lane(0, "bench", split, order, number, Reading(), 0)

        def read(cursor: Cursor, lane: Lane = lane) -> np.ndarray:
            return lane.document(cursor, split.tokens, split.tokens_lost)

        sequences.append(next(packed(read, lane.following, Cursor(0, SAMPLE // LANES), length)))
    first = time.perf_counter() - known
    return FarRun(known - begin, first, sequences)
