"""Pictures to shards: planned as a whole, written by several processes, taken up again after an interruption.

A shard that is finished has a note in the folder ``notes`` with its entry of the manifest and what was left out of it;
the next attempt writes only shards without. The notes go when the folder is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from nt_pretrain import __version__
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import resumed_folder, whole_file
from nt_pretrain.data.images import ImageError, check, extension_of
from nt_pretrain.data.labelled_shards import Sample, key_of_picture, write_labelled_shard
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, Source, file_sha256, read_manifest
from nt_pretrain.data.preparation.documents import Problems
from nt_pretrain.data.preparation.image_plan import ImageRecipe, Plan, ShardPlan, plan_shards, read_class_names
from nt_pretrain.data.preparation.notes import FOLDER as NOTES
from nt_pretrain.data.preparation.notes import read_note, write_note
from nt_pretrain.data.preparation.pictures import Picture, find_pictures
from nt_pretrain.data.preparation.prepare_text import SPLITS, Progress, refuse_different
from nt_pretrain.data.preparation.processes import Advance, work_through
from nt_pretrain.data.shards import index_path

LEFT_OUT = "left-out.jsonl"
"""Beside the manifest, if there are any: name, kind and detail of every picture that was left out."""


@dataclass(frozen=True)
class ImageInputs:
    """What the pictures are read from; see :func:`nt_pretrain.data.pictures.find_pictures`."""

    train: Path
    validation: Path | None = None
    validation_labels: Path | None = None
    class_names: Path | None = None


@dataclass(frozen=True)
class Note:
    """A finished shard, (name, kind, detail) of each picture left out of it, and the hash of every picture planned."""

    entry: ShardEntry
    left_out: list[list[str]]
    sha256: list[str]


def prepare_images(inputs: ImageInputs, out: Path, recipe: ImageRecipe, workers: int, progress: Progress) -> Problems:
    """Write the splits ``out/train`` and ``out/validation``: shards, index and manifest. Both appear at once.

    Interrupted, it leaves ``out.partial``, from which the same call goes on.

    Returns what was left out.

    Raises:
        DataError: inputs cannot be read, do not fit together, or ``out`` holds something else.
    """
    problems = Problems()
    plan, sources = _planned(inputs, recipe, problems, progress)
    with resumed_folder(out, plan.digest) as folder:
        for inside in (*SPLITS, NOTES):
            (folder / inside).mkdir(exist_ok=True)
        _write_missing(plan, folder, recipe.name, workers, progress)
        notes = {
            split: [_note(folder, each, recipe.name) for each in plan.shards if each.split == split] for split in SPLITS
        }
        for name, kind, _ in (left for found in notes.values() for note in found if note for left in note.left_out):
            problems.add(f"pictures left out: {kind}", name)
        sources = _hashed(sources, plan, notes, recipe)
        for split, found in notes.items():
            _finish(folder / split, split, [note for note in found if note], plan, sources, recipe, problems)
    shutil.rmtree(out / NOTES)
    return problems


def check_same_images(inputs: ImageInputs, out: Path, recipe: ImageRecipe, progress: Progress) -> None:
    """Check that ``out`` was made from these inputs by this recipe. Inputs that are gone are taken to be the same.

    Raises:
        DataError: naming what differs.
    """
    made = read_manifest(out / "train")
    found = [("--name", made.name, recipe.name), ("split", made.split_rule, recipe.split_rule)]
    if all(path is None or path.exists() for path in vars(inputs).values()):
        plan, sources = _planned(inputs, recipe, Problems(), progress)
        before, now = [
            ", ".join(f"{each.name} ({each.files:,} pictures, {each.bytes:,} bytes)" for each in side)
            for side in (made.sources, sources)
        ]
        found += [("inputs", before, now), ("classes", f"{len(made.classes):,}", f"{len(plan.classes):,}")]
    refuse_different(out, found)


def _planned(
    inputs: ImageInputs, recipe: ImageRecipe, problems: Problems, progress: Progress
) -> tuple[Plan, list[Source]]:
    train = find_pictures(inputs.train, None, problems, lambda count: progress("finding pictures", count, 0))
    sources, validation = [_source(inputs.train, train)], None
    if inputs.validation is not None:
        validation = find_pictures(inputs.validation, inputs.validation_labels, problems)
        sources.append(_source(inputs.validation, validation))
    names = read_class_names(inputs.class_names) if inputs.class_names else {}
    return plan_shards(train, validation, names, recipe), sources


def _source(path: Path, pictures: list[Picture]) -> Source:
    """Without a hash yet: the sources are read once, by the processes that write."""
    return Source(path.resolve().name, len(pictures), sum(picture.size for picture in pictures), "")


def _hashed(
    sources: list[Source], plan: Plan, notes: dict[str, list[Note | None]], recipe: ImageRecipe
) -> list[Source]:
    """The sources with the hash of the lines ``sha256sum`` prints for their pictures, named CLASS/FILE and sorted."""
    lines: list[list[tuple[str, str]]] = [[] for _ in sources]
    for split, found in notes.items():
        source = 1 if split == "validation" and recipe.validation_share is None else 0
        shards = (each for each in plan.shards if each.split == split)
        for shard, note in zip(shards, found, strict=True):
            assert note is not None, "all shards are written"
            names = (picture.name for picture in shard.pictures)
            lines[source] += zip(names, note.sha256, strict=True)
    hashed = []
    for facts, each in zip(sources, lines, strict=True):
        digest = hashlib.sha256()
        for name, sha256 in sorted(each):
            digest.update(f"{sha256}  {name}\n".encode("utf-8", "surrogateescape"))
        hashed.append(replace(facts, sha256=digest.hexdigest()))
    return hashed


def _write_missing(plan: Plan, folder: Path, name: str, workers: int, progress: Progress) -> None:
    missing = [each for each in plan.shards if _note(folder, each, name) is None]
    total, done = sum(len(each.pictures) for each in plan.shards), 0

    def advance(pictures: int) -> None:
        nonlocal done
        done += pictures
        progress("writing (pictures)", done, total)

    advance(total - sum(len(each.pictures) for each in missing))
    work_through([partial(_write_and_tell, folder, each, name) for each in missing], workers, advance)


def _write_and_tell(folder: Path, plan: ShardPlan, name: str, advance: Advance) -> None:
    advance(0)
    write_planned(folder, plan, name)
    advance(len(plan.pictures))


def write_planned(folder: Path, plan: ShardPlan, name: str) -> None:
    """Write one shard, its index and, last, its note.

    Raises:
        DataError: a source cannot be read, or not one picture of the shard can be decoded.
    """
    left_out: list[list[str]] = []
    sha256: list[str] = []
    path = _shard_path(folder, plan, name)
    written = write_labelled_shard(path, _samples(plan, left_out, sha256))
    if not written:
        path.unlink()
        raise DataError(
            f"none of the {len(plan.pictures):,} pictures of {path.name} can be decoded (first: {left_out[0][0]}: "
            f"{left_out[0][2]}); are the sources complete?"
        )
    hashes = file_sha256(path), file_sha256(index_path(path))
    note = Note(ShardEntry(path.name, written, path.stat().st_size, *hashes), left_out, sha256)
    write_note(_note_path(folder, plan), asdict(note))


def _samples(plan: ShardPlan, left_out: list[list[str]], sha256: list[str]) -> Iterator[Sample]:
    for place, (picture, label) in enumerate(zip(plan.pictures, plan.labels, strict=True), plan.first):
        content = picture.read()
        sha256.append(hashlib.sha256(content).hexdigest())
        try:
            extension = extension_of(content)
            if plan.check:
                check(content)
        except ImageError as error:
            left_out.append([picture.name, error.kind, str(error)])
            continue
        yield Sample(key_of_picture(place, picture.name), content, extension, label)


def _shard_path(folder: Path, plan: ShardPlan, name: str) -> Path:
    return folder / plan.split / f"{name}-{plan.split}-{plan.number:06d}.tar"


def _note_path(folder: Path, plan: ShardPlan) -> Path:
    return folder / NOTES / f"{plan.split}-{plan.number:06d}.json"


def _note(folder: Path, plan: ShardPlan, name: str) -> Note | None:
    """The note of a finished shard; None if it is still to be written."""
    shard = _shard_path(folder, plan, name)
    content = read_note(_note_path(folder, plan))
    if content is None or not shard.exists() or not index_path(shard).exists():
        return None
    note = Note(ShardEntry(**content["entry"]), content["left_out"], content["sha256"])
    return note if shard.stat().st_size == note.entry.bytes else None


def _finish(
    folder: Path,
    split: str,
    notes: list[Note],
    plan: Plan,
    sources: list[Source],
    recipe: ImageRecipe,
    problems: Problems,
) -> None:
    """Write the manifest of a split and the list of what was left out."""
    manifest = Manifest(
        version=1,
        name=recipe.name,
        split=split,
        format="images",
        shards=[note.entry for note in notes],
        sources=sources,
        split_rule=recipe.split_rule,
        tool=f"nt_pretrain {__version__}",
        problems=problems.counts,
        classes=plan.classes,
        class_names=plan.class_names,
    )
    left_out = [dict(zip(("name", "kind", "detail"), left, strict=True)) for note in notes for left in note.left_out]
    if left_out:
        with whole_file(folder / LEFT_OUT) as file:
            file.write("".join(json.dumps(left) + "\n" for left in left_out).encode())
    with whole_file(folder / FILE) as file:
        file.write(manifest.to_text().encode())
