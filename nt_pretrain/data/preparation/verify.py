"""Checks that a prepared corpus is still what was written, and names what is not."""

from __future__ import annotations

from pathlib import Path

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import Manifest, ShardEntry, file_sha256, read_manifest
from nt_pretrain.data.preparation.prepare_text import SPLITS, Progress
from nt_pretrain.data.shards import Shard, index_path

NAMED = 3
"""Damaged documents or pictures named of one shard; the rest is counted."""


def verify(corpus: Path, progress: Progress) -> list[str]:
    """Check every shard and index against the manifests; one line for each that is not what was written.

    Raises:
        DataError: a manifest is missing or damaged.
    """
    manifests = {split: read_manifest(corpus / split) for split in SPLITS}
    total, done = sum(_bytes(manifest) for manifest in manifests.values()), 0
    wrong: list[str] = []
    for split, manifest in manifests.items():
        what = {"text": "document", "pictures": "picture", "rows": "row"}[manifest.kind]
        for entry in manifest.shards:
            progress(f"checking {entry.name} (bytes)", done, total)
            wrong += _problems(corpus / split / entry.name, entry, what)
            done += entry.bytes
    progress("checking (bytes)", total, total)
    return wrong


def _bytes(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.shards)


def _problems(shard: Path, entry: ShardEntry, what: str) -> list[str]:
    found = []
    for file, sha256 in ((index_path(shard), entry.index_sha256), (shard, entry.sha256)):
        if not file.exists():
            found.append(f"{file}: is missing")
        elif file_sha256(file) != sha256:
            found.append(f"{file}: is not what the manifest lists (sha256)")
    damaged_only = found and found == [f"{shard}: is not what the manifest lists (sha256)"]
    return found + _damaged(shard, what) if damaged_only else found


def _damaged(path: Path, what: str) -> list[str]:
    """With a sound index, the documents or pictures that are hit; none if the damage lies between them."""
    shard = Shard.open(path)
    damaged = []
    for number in range(len(shard)):
        try:
            shard.document(number)
        except DataError:
            offset = int(shard.index[number]["offset"])
            damaged.append(f"  {what} {number} at byte {offset} is damaged")
    shard.close()
    more = [f"  and {len(damaged) - NAMED:,} more"] if len(damaged) > NAMED else []
    return damaged[:NAMED] + more
