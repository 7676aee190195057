"""The second half of preparing text: sorted runs become shards, each an equal range of the key, each on its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nt_pretrain.data.manifest import ShardEntry, file_sha256
from nt_pretrain.data.preparation.notes import FOLDER as NOTES
from nt_pretrain.data.preparation.notes import read_note, write_note
from nt_pretrain.data.preparation.processes import Advance, work_through
from nt_pretrain.data.preparation.read_text import RUNS, SPLITS
from nt_pretrain.data.preparation.runs import bounds_of, rows_between, rows_in_ranges
from nt_pretrain.data.shards import index_path, write_shard

PLAN = "shards.json"


@dataclass(frozen=True)
class ShardRange:
    """A shard to be: its file's name, its documents, and the range of the key they have."""

    split: str
    name: str
    documents: int
    low: int
    high: int


def plan_ranges(
    folder: Path, name: str, runs: dict[str, list[str]], ranges: dict[str, int], counted: Callable[[int], None]
) -> list[ShardRange]:
    """Settle which range of the key goes into which shard. Ranges without documents give none.

    A plan that stands in the folder is taken if it was made from the same runs; else what was written by it goes.

    Args:
        runs: of each split, in the order of the input.
        ranges: their number for each split.
        counted: told of each run that was looked at.
    """
    digest = hashlib.sha256(json.dumps([name, runs, ranges]).encode()).hexdigest()
    note = read_note(folder / NOTES / PLAN)
    if note is not None and note["digest"] == digest:
        return [ShardRange(**each) for each in note["shards"]]
    shards: list[ShardRange] = []
    for split in SPLITS:
        for path in (folder / NOTES).glob(f"{split}-*.json"):
            path.unlink()
        shutil.rmtree(folder / split, ignore_errors=True)
        (folder / split).mkdir()
        bounds = bounds_of(ranges[split])
        documents = np.zeros(ranges[split], dtype=np.int64)
        for run in runs[split]:
            documents += rows_in_ranges(folder / RUNS / run, bounds)
            counted(1)
        for number, place in enumerate(np.flatnonzero(documents).tolist()):
            file = f"{name}-{split}-{number:06d}.tar"
            shards.append(ShardRange(split, file, int(documents[place]), bounds[place], bounds[place + 1]))
    write_note(folder / NOTES / PLAN, {"digest": digest, "runs": runs, "shards": [asdict(each) for each in shards]})
    return shards


def write_ranges(folder: Path, shards: list[ShardRange], extension: str, workers: int, advance: Advance) -> None:
    """Write every shard that is not there yet. ``advance`` is told documents."""
    missing = [each for each in shards if shard_entry(folder, each) is None]
    done = {each.name for each in shards} - {each.name for each in missing}
    advance(sum(each.documents for each in shards if each.name in done))
    work_through([partial(_write_range, folder, each, extension) for each in missing], workers, advance)


def shard_entry(folder: Path, shard: ShardRange) -> ShardEntry | None:
    """The entry of a finished shard; None if it is still to be written."""
    note = read_note(_note_path(folder, shard))
    path = folder / shard.split / shard.name
    if note is None or not path.exists() or not index_path(path).exists() or path.stat().st_size != note["bytes"]:
        return None
    return ShardEntry(**note)


def _write_range(folder: Path, shard: ShardRange, extension: str, advance: Advance) -> None:
    advance(0)
    runs = _runs(folder)[shard.split]
    path = folder / shard.split / shard.name
    rows = rows_between([folder / RUNS / run for run in runs], shard.low, shard.high)
    write_shard(path, rows, extension)
    hashes = file_sha256(path), file_sha256(index_path(path))
    entry = ShardEntry(path.name, len(rows), path.stat().st_size, *hashes)
    write_note(_note_path(folder, shard), asdict(entry))
    advance(len(rows))


def _runs(folder: Path) -> dict[str, Any]:
    """Names of the runs, read where they are needed: they are many, and shards are too."""
    note = read_note(folder / NOTES / PLAN)
    assert note is not None, "written before any shard"
    found: dict[str, Any] = note["runs"]
    return found


def _note_path(folder: Path, shard: ShardRange) -> Path:
    number = shard.name.removesuffix(".tar").rpartition("-")[2]
    return folder / NOTES / f"{shard.split}-{number}.json"
