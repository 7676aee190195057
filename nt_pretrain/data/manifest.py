"""The manifest of a prepared split: what it holds, and a fingerprint by which a run knows its data again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from nt_pretrain.config.model_section import Kind
from nt_pretrain.data.errors import DataError

FILE = "manifest.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar")
Format = Literal["text", "tokens", "images", "rows"]
DTYPES: dict[str, tuple[str, ...]] = {"text": ("",), "tokens": ("<u2", "<u4"), "images": ("",), "rows": ("<f4",)}
KINDS: dict[Format, Kind] = {"text": "text", "tokens": "text", "images": "pictures", "rows": "rows"}
MOST = 1 << 48
"""Documents or bytes of a shard: more are a mistake, or meant to exhaust memory."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard: file name, documents (or pictures, or rows), bytes and hash of the tar, hash of its index."""

    name: str
    documents: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Source:
    """One input: its name, files, bytes, and a hash of the names and contents of its files in their order."""

    name: str
    files: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A split of a corpus. ``tokenizer`` and ``dtype`` are empty unless the shards hold tokens (of rows ``dtype`` is
    that of their numbers), ``classes`` and ``class_names`` unless they hold pictures or rows, ``features`` is 0 unless
    rows.

    ``classes`` are sorted; a sample's label is a place in them. ``class_names`` are for people, one a class or none.
    ``problems`` counts what was left out of the sources, or mended, for both splits together.
    """

    version: int
    name: str
    split: str
    format: Format
    shards: list[ShardEntry]
    sources: list[Source]
    split_rule: str
    tool: str
    tokenizer: str = ""
    dtype: str = ""
    problems: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    features: int = 0

    @property
    def kind(self) -> Kind:
        """What the shards are data of."""
        return KINDS[self.format]

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any shard, and with nothing else."""
        text = "\n".join(f"{shard.name} {shard.sha256} {shard.index_sha256}" for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_text(self) -> str:
        totals: dict[str, Any] = {"documents": self.documents, "bytes": sum(shard.bytes for shard in self.shards)}
        return json.dumps({**asdict(self), **totals, "fingerprint": self.fingerprint}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a split.

    Raises:
        DataError: there is none, or it is not one of ours.
    """
    path = folder / FILE
    try:
        return parse_manifest(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not prepared: {path} is missing; make it with launch/prepare.py text, images or rows"
        ) from None


def parse_manifest(text: str, where: str) -> Manifest:
    """A manifest from its text; ``where`` is the file or URL it was read from.

    Raises:
        DataError: it is not one of ours, or names files outside its folder.
    """
    try:
        content = json.loads(text)
        derived = {name: content.pop(name) for name in ("documents", "bytes", "fingerprint")}
        content["shards"] = [ShardEntry(**entry) for entry in content["shards"]]
        content["sources"] = [_source(entry) for entry in content["sources"]]
        found = Manifest(**content)
        _check(found)
        if (derived["documents"], derived["bytes"]) != (found.documents, sum(each.bytes for each in found.shards)):
            raise ValueError("documents and bytes are not those of its shards together")
        # A name is never a path, nor a command: no manifest makes a run read anything but files beside it.
        strange = next((each.name for each in found.shards if not SHARD_NAME.fullmatch(each.name)), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is not a manifest of this version ({error}); prepare the data again") from None
    if strange is not None:
        raise DataError(f"{where} names the shard {strange!r}, which is no plain file name; do not use this data")
    if derived["fingerprint"] != found.fingerprint:
        raise DataError(f"{where} was changed after it was written: its fingerprint does not fit its shards")
    if not found.shards:
        raise DataError(f"{where} holds no documents; prepare more, or a larger --validation-share")
    return found


def _check(manifest: Manifest) -> None:
    """Raise ValueError at what no manifest of ours holds: what is read by it must not depend on a stranger's types."""
    for each in manifest.shards:
        counts = each.documents, each.bytes
        texts = each.name, each.sha256, each.index_sha256
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"shard {each.name!r}: its name and hashes must be text")
        if not all(type(count) is int and 0 < count < MOST for count in counts):
            raise ValueError(f"shard {each.name!r} of {counts[0]!r} documents in {counts[1]!r} bytes")
    names = [*manifest.classes, *manifest.class_names] if isinstance(manifest.classes, list) else [None]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("classes must be a list of names")
    if manifest.format not in get_args(Format):
        raise ValueError(f"format {manifest.format!r}; known are {', '.join(get_args(Format))}")
    if type(manifest.features) is not int or (manifest.format == "rows") != (0 < manifest.features < MOST):
        raise ValueError(f"{manifest.format} of {manifest.features!r} features")
    if manifest.dtype not in DTYPES[manifest.format]:
        raise ValueError(f"dtype {manifest.dtype!r} of {manifest.format}")


def _source(entry: Any) -> Source:
    # Version 0.1.0 wrote names only.
    return Source(entry, 1, 0, "") if isinstance(entry, str) else Source(**entry)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
