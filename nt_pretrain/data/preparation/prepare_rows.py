"""Labelled rows of numbers to shards: read whole, split, shuffled and written in one go.

Rows are held out and shuffled by a hash of their numbers, so equal rows fall on one side, and the order of the source,
which may be sorted by class, is that of nobody's batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nt_pretrain import __version__
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import whole_file, whole_folder
from nt_pretrain.data.labelled_shards import Sample, write_labelled_shard
from nt_pretrain.data.manifest import FILE, Manifest, ShardEntry, Source, file_sha256, read_manifest
from nt_pretrain.data.preparation.documents import Problems
from nt_pretrain.data.preparation.prepare_text import SPLITS, refuse_different
from nt_pretrain.data.preparation.row_files import Table
from nt_pretrain.data.rows import DTYPE, encoded
from nt_pretrain.data.shards import index_path

ROW_BYTES = 2048
"""Of a tar around each row: two headers, the label, and the padding of both."""
STANDARDISED = "standardised.json"
"""Beside the splits, where features were: mean and standard deviation of each, of the training rows."""


@dataclass(frozen=True)
class RowRecipe:
    """How rows become shards.

    Attributes:
        name: first part of the shards' names.
        shard_bytes: of a shard, about.
        validation_share: of the rows, held out by their hash; None: validation rows are given.
        standardise: whether features get mean 0 and standard deviation 1 over the training rows.
    """

    name: str
    shard_bytes: int = 64_000_000
    validation_share: float | None = None
    standardise: bool = False

    @property
    def split_rule(self) -> str:
        held = (
            "validation rows are given" if self.validation_share is None else f"share {self.validation_share} by hash"
        )
        return held + (", standardised" if self.standardise else "")


def prepare_rows(train: Table, validation: Table | None, out: Path, recipe: RowRecipe) -> Problems:
    """Write the splits ``out/train`` and ``out/validation``: shards, index and manifest. Both appear at once.

    Returns what was left out: rows with a number that is none (nan) or infinite.

    Raises:
        DataError: the tables do not fit together, a split is empty, or ``out`` holds something.
    """
    problems = Problems()
    sources = [table.source for table in (train, validation) if table is not None]
    train = _finite(train, problems)
    if validation is None:
        train, validation = _held_out(train, recipe)
    else:
        validation = _finite(validation, problems)
        _check_fit(train, validation)
    classes = sorted(set(train.labels.tolist()), key=_class_order)
    tables = {"train": _shuffled(train), "validation": _shuffled(validation)}
    with whole_folder(out) as folder:
        if recipe.standardise:
            tables = _standardised(tables, folder)
        for split in SPLITS:
            _write_split(folder / split, split, tables[split], classes, sources, recipe, problems)
    return problems


def check_same_rows(sources: list[Source], out: Path, recipe: RowRecipe) -> None:
    """Check that ``out`` was made from these sources by this recipe.

    Raises:
        DataError: naming what differs.
    """
    made = read_manifest(out / "train")
    before, now = (", ".join(f"{each.name} ({each.sha256[:16]})" for each in side) for side in (made.sources, sources))
    found = [("--name", made.name, recipe.name), ("split", made.split_rule, recipe.split_rule)]
    refuse_different(out, [*found, ("format", made.format, "rows"), ("inputs", before, now)])


def _finite(table: Table, problems: Problems) -> Table:
    # As they will be stored: what is too large for fp32 is infinite there.
    with np.errstate(over="ignore"):
        good = np.isfinite(table.features.astype(DTYPE)).all(axis=1)
    for row in np.flatnonzero(~good):
        problems.add("rows left out: a number that is nan or infinite in fp32", f"{table.source.name}, row {row + 1}")
    return replace(table, features=table.features[good], labels=table.labels[good])


def _check_fit(train: Table, validation: Table) -> None:
    here, there = train.features.shape[1], validation.features.shape[1]
    if here != there:
        raise DataError(f"{train.source.name} has rows of {here:,} numbers, {validation.source.name} of {there:,}")
    unknown = sorted(set(validation.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        raise DataError(f"{validation.source.name}: classes that {train.source.name} does not have: {unknown[:3]}")


def _hashes(table: Table) -> list[bytes]:
    return [hashlib.sha256(row.tobytes()).digest() for row in table.features.astype(DTYPE)]


def _held_out(table: Table, recipe: RowRecipe) -> tuple[Table, Table]:
    assert recipe.validation_share is not None, "either validation rows or a share of the others"
    limit = int(recipe.validation_share * 2**64)
    out = np.array([int.from_bytes(each[:8], "little") < limit for each in _hashes(table)], dtype=bool)
    train, validation = (replace(table, features=table.features[of], labels=table.labels[of]) for of in (~out, out))
    for name, part in (("training", train), ("validation", validation)):
        if not len(part.labels):
            raise DataError(
                f"{table.source.name}: no {name} rows of {len(table.labels):,} with --validation-share "
                f"{recipe.validation_share}; choose another share, or give --validation FILE"
            )
    missing = sorted(set(validation.labels.tolist()) - set(train.labels.tolist()))
    if missing:
        raise DataError(f"{table.source.name}: all rows of {missing[:3]} are held out; lower --validation-share")
    return train, validation


def _class_order(name: str) -> tuple[int, int, str]:
    """Numbers as numbers, before words."""
    return (0, int(name), "") if name.lstrip("-").isdecimal() else (1, 0, name)


def _shuffled(table: Table) -> Table:
    # Other bytes of the hash than those that hold out, which would sort the held out first.
    order = sorted(range(len(table.labels)), key=[each[8:] for each in _hashes(table)].__getitem__)
    return replace(table, features=table.features[order], labels=table.labels[order])


def _standardised(tables: dict[str, Table], folder: Path) -> dict[str, Table]:
    features = tables["train"].features.astype(np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    if (constant := np.flatnonzero(deviation == 0.0)).size:
        raise DataError(f"feature {constant[0] + 1} is {mean[constant[0]]:g} in every training row; take it out")
    facts = {"mean": mean.tolist(), "deviation": deviation.tolist()}
    (folder / STANDARDISED).write_text(json.dumps(facts) + "\n")
    return {name: replace(table, features=(table.features - mean) / deviation) for name, table in tables.items()}


def _write_split(
    folder: Path, split: str, table: Table, classes: list[str], sources: list[Source], recipe: RowRecipe,
    problems: Problems,
) -> None:  # fmt: skip
    folder.mkdir()
    count, features = table.features.shape
    shards = max(1, round(count * (ROW_BYTES + DTYPE.itemsize * features) / recipe.shard_bytes))
    bounds = [count * shard // shards for shard in range(shards + 1)]
    entries = []
    for number in range(shards):
        path = folder / f"{recipe.name}-{split}-{number:06d}.tar"
        rows = write_labelled_shard(path, _samples(table, bounds[number], bounds[number + 1], classes))
        hashes = file_sha256(path), file_sha256(index_path(path))
        entries.append(ShardEntry(path.name, rows, path.stat().st_size, *hashes))
    manifest = Manifest(
        version=1,
        name=recipe.name,
        split=split,
        format="rows",
        shards=entries,
        sources=sources,
        split_rule=recipe.split_rule,
        tool=f"nt_pretrain {__version__}",
        dtype=DTYPE.str,
        problems=problems.counts,
        classes=classes,
        features=features,
    )
    with whole_file(folder / FILE) as file:
        file.write(manifest.to_text().encode())


def _samples(table: Table, first: int, stop: int, classes: list[str]) -> Iterator[Sample]:
    labels = {name: label for label, name in enumerate(classes)}
    for place in range(first, stop):
        yield Sample(f"{place:07d}", encoded(table.features[place]), "npy", labels[table.labels[place]])
