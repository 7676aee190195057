"""Documents to shards: split by hash, put in hash order, written reproducibly, checked.

A document's place follows from the hash of its text alone: which split it belongs to (so copies of a text never stand
on both sides) and where in the shards it comes (so every shard is a fair sample). Documents first go to buckets on disk
by their hash, then each bucket is sorted in memory, so corpora larger than memory are no problem.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nt_pretrain import __version__
from nt_pretrain.data.documents import LONGEST, Document, Problems, find_files, read_documents
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import whole_file, whole_folder
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, Source, file_sha256, read_manifest
from nt_pretrain.data.shards import index_path, write_shard
from nt_pretrain.data.spool import Spool
from nt_pretrain.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
BUCKET_BYTES = 256_000_000
"""Text sorted in memory at once."""
EXPANSION = 4
"""Bytes of text from a byte of input, if compressed; only the number of buckets depends on it."""
Progress = Callable[[str, int, int], None]
"""(what is done, units done, units in all), called often."""


@dataclass(frozen=True)
class Recipe:
    """How text becomes shards.

    Attributes:
        name: first part of the shards' names.
        validation_share: share of documents held out, by hash.
        shard_bytes: size after which a new shard begins.
        longest: characters after which a document is cut.
        tokenizer: if given, token numbers are written instead of text.
    """

    name: str
    validation_share: float
    shard_bytes: int
    longest: int = LONGEST
    tokenizer: Tokenizer | None = None

    @property
    def split_rule(self) -> str:
        return f"validation: first 8 bytes of the text's sha256, little-endian, below {self.validation_share} x 2**64"


def prepare_text(inputs: list[Path], out: Path, recipe: Recipe, progress: Progress) -> Problems:
    """Write the splits ``out/train`` and ``out/validation``: shards, index and manifest. Both appear at once.

    Returns what was left out or mended.

    Raises:
        DataError: inputs cannot be read, a split would hold nothing, or ``out`` holds something else.
    """
    files = [(path, find_files(path)) for path in inputs]
    problems = Problems()
    with whole_folder(out) as folder:
        size = sum(each.stat().st_size for _, found in files for each in found)
        spool = Spool(folder / "unsorted", max(1, size * EXPANSION // BUCKET_BYTES))
        _spool_documents([each for _, found in files for each in found], spool, recipe, problems, progress)
        if not spool.counts:
            raise DataError("\n".join([f"no documents in {', '.join(map(str, inputs))}", *problems.lines()]))
        sources = [_source(path, found) for path, found in files]
        for split in SPLITS:
            if not spool.counts.get(split):
                raise DataError(
                    f"the {split} split is empty: {sum(spool.counts.values())} documents are too few for "
                    f"--validation-share {recipe.validation_share}; one long text is cut into documents by "
                    "--document-characters"
                )
            (folder / split).mkdir()
            shards = _write_shards(spool, split, folder / split, recipe, progress)
            manifest = _manifest(split, shards, sources, recipe, problems)
            with whole_file(folder / split / FILE) as file:
                file.write(manifest.to_text().encode())
        spool.remove()
    return problems


def is_prepared(out: Path) -> bool:
    return all((out / split / FILE).exists() for split in SPLITS)


def check_same(inputs: list[Path], out: Path, recipe: Recipe) -> None:
    """Check that ``out`` was made from these inputs by this recipe. Inputs that are gone are taken to be the same.

    Raises:
        DataError: naming what differs.
    """
    made = read_manifest(out / "train")
    wanted = "" if recipe.tokenizer is None else recipe.tokenizer.sha256
    found = [
        ("--name", made.name, recipe.name),
        ("split", made.split_rule, recipe.split_rule),
        ("--tokenizer (sha256)", made.tokenizer or "none", wanted or "none"),
    ]
    if all(path.exists() for path in inputs) and all(source.sha256 for source in made.sources):
        before = [f"{source.name} ({source.bytes:,} bytes)" for source in made.sources]
        sizes = [(path.resolve().name, sum(file.stat().st_size for file in find_files(path))) for path in inputs]
        found.append(("inputs", ", ".join(before), ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes)))
    refuse_different(out, found)


def refuse_different(out: Path, found: list[tuple[str, str, str]]) -> None:
    """Compare (what, as ``out`` was made, as it is wanted now).

    Raises:
        DataError: naming what differs.
    """
    different = [f"  {what}: {before} -> {now}" for what, before, now in found if before != now]
    if different:
        raise DataError(
            f"{out} was prepared differently:\n" + "\n".join(different) + "\nChoose another --out, or delete it first."
        )


def _spool_documents(files: list[Path], spool: Spool, recipe: Recipe, problems: Problems, progress: Progress) -> None:
    limit = int(recipe.validation_share * 2**64)
    total, done = sum(each.stat().st_size for each in files), 0
    for path in files:
        what, before = f"reading {path.name} (bytes)", done

        def at(read: int, what: str = what, before: int = before) -> None:
            progress(what, before + read, total)

        at(0)
        for document in read_documents(path, problems, longest=recipe.longest, at=at):
            digest = hashlib.sha256(document.text.encode()).digest()
            split = "validation" if int.from_bytes(digest[:8], "little") < limit else "train"
            # What decides the split must not decide the order too: the first bytes are spent.
            spool.add(split, digest[8:], row_of(document))
        done += path.stat().st_size
    progress("reading (bytes)", total, total)
    spool.flush()


def _write_shards(spool: Spool, split: str, folder: Path, recipe: Recipe, progress: Progress) -> list[ShardEntry]:
    shards: list[ShardEntry] = []
    rows: list[bytes] = []
    size = 0

    def close() -> None:
        path = folder / f"{recipe.name}-{split}-{len(shards):06d}.tar"
        write_shard(path, rows, "jsonl" if recipe.tokenizer is None else "tokens")
        hashes = file_sha256(path), file_sha256(index_path(path))
        shards.append(ShardEntry(path.name, len(rows), path.stat().st_size, *hashes))
        rows.clear()

    for done, row in enumerate(spool.in_order(split)):
        if done % 256 == 0:
            progress(f"writing {split} (documents)", done, spool.counts[split])
        encoded = row if recipe.tokenizer is None else _token_bytes(row, recipe.tokenizer)
        if rows and size + len(encoded) > recipe.shard_bytes:
            close()
            size = 0
        rows.append(encoded)
        size += len(encoded)
    close()
    return shards


def row_of(document: Document) -> bytes:
    """A document as a line of JSON, in C4's order of fields."""
    return json.dumps({"text": document.text, **document.meta}, ensure_ascii=False).encode() + b"\n"


def _token_bytes(row: bytes, tokenizer: Tokenizer) -> bytes:
    return tokenizer.encode(json.loads(row)["text"]).astype(token_dtype(tokenizer)).tobytes()


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every token."""
    return np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")


def _source(path: Path, files: list[Path]) -> Source:
    """Facts of an input; the hash is that of the lines ``sha256sum`` prints for its files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        digest.update(f"{file_sha256(file)}  {name}\n".encode())
    return Source(path.resolve().name, len(files), sum(file.stat().st_size for file in files), digest.hexdigest())


def _manifest(
    split: str, shards: list[ShardEntry], sources: list[Source], recipe: Recipe, problems: Problems
) -> Manifest:
    tokenizer = recipe.tokenizer
    return Manifest(
        version=1,
        name=recipe.name,
        split=split,
        format="text" if tokenizer is None else "tokens",
        shards=shards,
        sources=sources,
        split_rule=recipe.split_rule,
        tool=f"nt_pretrain {__version__}",
        tokenizer="" if tokenizer is None else tokenizer.sha256,
        dtype="" if tokenizer is None else token_dtype(tokenizer).str,
        problems=problems.counts,
    )
