"""Documents to shards: split by hash, put in hash order, written reproducibly, checked.

A document's place follows from the hash of its text alone: which split it belongs to (so copies of a text never stand
on both sides) and where in the shards it comes (so every shard is a fair sample). Neither the number of processes nor
the way the input is cut into files enters. Processes first turn files into sorted runs (``read_text``), then each shard
is put together from its range of all runs (``write_text``); both halves are kept if the work is interrupted.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from nt_pretrain import __version__
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import resumed_folder, whole_file
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, Source, read_manifest
from nt_pretrain.data.preparation.documents import Problems
from nt_pretrain.data.preparation.inputs import Input, find_inputs, is_url
from nt_pretrain.data.preparation.notes import FOLDER as NOTES
from nt_pretrain.data.preparation.read_text import (
    FETCHED,
    RUNS,
    SPLITS,
    Group,
    GroupRead,
    Recipe,
    grouped,
    read_groups,
    units_of,
)
from nt_pretrain.data.preparation.write_text import ShardRange, plan_ranges, shard_entry, write_ranges
from nt_pretrain.data.storage.remote_errors import shown_url
from nt_pretrain.data.tokenizer import token_dtype

Progress = Callable[[str, int, int], None]
"""(what is done, units done, units in all), called often."""


def prepare_text(
    inputs: Sequence[str | Path], out: Path, recipe: Recipe, progress: Progress, workers: int = 1
) -> Problems:
    """Write the splits ``out/train`` and ``out/validation``: shards, index and manifest. Both appear at once.

    Interrupted, it leaves ``out.partial``, from which the same call goes on.

    Args:
        inputs: files, folders, or URLs; braces and, in URLs of object stores, stars stand for many.
        workers: processes; the shards do not depend on their number.

    Returns what was left out or mended.

    Raises:
        DataError: inputs cannot be read, a split would hold nothing, or ``out`` holds something else.
    """
    found = find_inputs(inputs)
    groups = grouped([file for each in found for file in each.files])
    names = "\n".join(each.name for each in found)
    plan = hashlib.sha256(f"{__version__} {recipe.digest}\n{names}".encode()).hexdigest()
    with resumed_folder(out, plan) as folder:
        for inside in (*SPLITS, RUNS, NOTES):
            (folder / inside).mkdir(exist_ok=True)
        read = _read(groups, folder, recipe, workers, progress)
        problems = Problems()
        for each in read:
            problems.merge(each.problems)
        try:
            shards = _planned(read, folder, recipe, problems, inputs, progress)
        except DataError:
            shutil.rmtree(folder)  # nothing in it is of use to inputs or options that can work
            raise
        _write(shards, folder, recipe, workers, progress)
        sources = _sources(found, [file for each in read for file in each.files])
        for split in SPLITS:
            entries = [shard_entry(folder, shard) for shard in shards if shard.split == split]
            manifest = _manifest(split, [each for each in entries if each], sources, recipe, problems)
            with whole_file(folder / split / FILE) as file:
                file.write(manifest.to_text().encode())
        for inside in (RUNS, FETCHED):
            shutil.rmtree(folder / inside, ignore_errors=True)
    shutil.rmtree(out / NOTES)
    return problems


def is_prepared(out: Path) -> bool:
    return all((out / split / FILE).exists() for split in SPLITS)


def check_same(inputs: Sequence[str | Path], out: Path, recipe: Recipe) -> None:
    """Check that ``out`` was made from these inputs by this recipe. Inputs that are gone are taken to be the same, and
    of remote ones only their names are compared.

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
    there = all(is_url(str(each)) or "{" in str(each) or Path(each).exists() for each in inputs)
    if there and all(source.sha256 for source in made.sources):
        now = find_inputs(inputs)
        remote = {each.name for each in now if each.files[0].size is None}
        before = [_of(each.name, each.bytes, each.name in remote) for each in made.sources]
        after = [_of(each.name, sum(file.size or 0 for file in each.files), each.name in remote) for each in now]
        found.append(("inputs", ", ".join(before), ", ".join(after)))
    refuse_different(out, found)


def _of(name: str, size: int, remote: bool) -> str:
    return name if remote else f"{name} ({size:,} bytes)"


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


def _read(groups: list[Group], folder: Path, recipe: Recipe, workers: int, progress: Progress) -> list[GroupRead]:
    files = sum(len(group.files) for group in groups)
    remote = any(group.files[0].size is None for group in groups)
    unit = "files" if all(group.files[0].size is None for group in groups) else "bytes"
    what = f"reading {'and fetching ' if remote else ''}{files:,} files ({unit})"
    advance = _counted(progress, what, sum(map(units_of, groups)))
    return read_groups(groups, folder, recipe, workers, advance)


def _counted(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Told of units done, tells of all that are."""
    done = 0

    def advance(units: int) -> None:
        nonlocal done
        done += units
        progress(what, done, total)

    advance(0)
    return advance


def _planned(
    read: list[GroupRead],
    folder: Path,
    recipe: Recipe,
    problems: Problems,
    inputs: Sequence[str | Path],
    progress: Progress,
) -> list[ShardRange]:
    """Which documents go into which shard.

    Raises:
        DataError: a split would be empty.
    """
    totals = {split: [sum(each.totals[split][n] for each in read) for n in (0, 1)] for split in SPLITS}
    documents = sum(count for count, _ in totals.values())
    if not documents:
        raise DataError(
            "\n".join([f"no documents in {', '.join(shown_url(str(each)) for each in inputs)}", *problems.lines()])
        )
    for split, (count, _) in totals.items():
        if not count:
            raise DataError(
                f"the {split} split is empty: {documents} documents are too few for "
                f"--validation-share {recipe.validation_share}; one long text is cut into documents by "
                "--document-characters"
            )
    runs = {split: [name for each in read for name in each.runs[split]] for split in SPLITS}
    ranges = {split: -(-size // recipe.shard_bytes) for split, (_, size) in totals.items()}
    counted = _counted(progress, "planning (sorted runs)", sum(map(len, runs.values())))
    return plan_ranges(folder, recipe.name, runs, ranges, counted)


def _write(shards: list[ShardRange], folder: Path, recipe: Recipe, workers: int, progress: Progress) -> None:
    total = sum(each.documents for each in shards)
    advance = _counted(progress, f"writing {len(shards):,} shards (documents)", total)
    write_ranges(folder, shards, "jsonl" if recipe.tokenizer is None else "tokens", workers, advance)


def _sources(inputs: list[Input], files: list[tuple[int, str]]) -> list[Source]:
    """Facts of the inputs; the hash is that of the lines ``sha256sum`` prints for the files of one, in their order."""
    found = []
    rest = iter(files)
    for each in inputs:
        digest, size = hashlib.sha256(), 0
        for file in each.files:
            bytes_, sha256 = next(rest)
            digest.update(f"{sha256}  {file.name}\n".encode())
            size += bytes_
        found.append(Source(each.name, len(each.files), size, digest.hexdigest()))
    return found


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
