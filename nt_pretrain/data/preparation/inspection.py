"""What a prepared split of pictures holds, for people: counts of labels, sizes, some samples, a contact sheet."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import whole_file
from nt_pretrain.data.images import ImageError, pixels, size_of
from nt_pretrain.data.labelled_shards import labels_of
from nt_pretrain.data.manifest import Manifest, read_manifest
from nt_pretrain.data.preparation.histogram import histogram
from nt_pretrain.data.shards import Shard

TILE, CAPTION, COLUMNS = 144, 14, 8
"""Pixels of a picture's square and of the line below it; pictures in a row."""
_NAME_BYTES = 100
"""Of a ustar header, which begins with the member's name."""


class Seen(NamedTuple):
    """One sample, as it lies in its shard."""

    shard: str
    key: str
    label: int
    content: bytes


@dataclass(frozen=True)
class Inspection:
    """Of one split: its manifest, pictures of each class, bytes of each picture, and samples evenly spread over it."""

    manifest: Manifest
    per_class: np.ndarray
    sizes: np.ndarray
    samples: list[Seen]

    def lines(self, shown: int = COLUMNS) -> list[str]:
        """The inspection in words, with the first ``shown`` samples."""
        classes, counts = self.manifest.classes, self.per_class
        least, most = int(counts.argmin()), int(counts.argmax())
        found = [
            f"{len(classes):,} classes; pictures of a class: {counts[least]:,} ({self.called(least)}) to "
            f"{counts[most]:,} ({self.called(most)}), median {statistics.median(counts.tolist()):,.0f}",
            "bytes of a picture:",
            *histogram(self.sizes),
            "samples:",
        ]
        for sample in self.samples[:shown]:
            try:
                height, width = size_of(sample.content)
                size = f"{width} x {height}"
            except ImageError as error:
                size = str(error)
            found.append(
                f"  {sample.shard}  {sample.key}  {sample.label} = {self.called(sample.label)}  {size}, "
                f"{len(sample.content):,} bytes"
            )
        return found

    def called(self, label: int) -> str:
        """A class by its folder and, where it has one, its name."""
        names = self.manifest.class_names
        return self.manifest.classes[label] + (f" {names[label].split(',')[0]}" if names else "")


def inspect_pictures(folder: Path, count: int) -> Inspection:
    """Read the indices of a split and ``count`` of its pictures.

    Raises:
        DataError: it is not there, is damaged, or holds no pictures but text.
    """
    manifest = read_manifest(folder)
    if manifest.format != "images":
        raise DataError(f"{folder} holds {manifest.format}, not pictures")
    places = np.unique(np.linspace(0, manifest.documents - 1, min(count, manifest.documents)).astype(np.int64))
    per_class, sizes, samples = np.zeros(len(manifest.classes), dtype=np.int64), [], []
    before = 0
    for entry in manifest.shards:
        shard = Shard.open(folder / entry.name)
        try:
            per_class += np.bincount(labels_of(shard), minlength=len(per_class))
            sizes.append(np.array(shard.index["size"]))
            for place in places[(places >= before) & (places < before + len(shard))]:
                samples.append(_sample(shard, int(place) - before))
            before += len(shard)
        finally:
            shard.close()
    return Inspection(manifest, per_class, np.concatenate(sizes), samples)


def write_contact_sheet(inspection: Inspection, path: Path) -> None:
    """Write the samples as one PNG, each over its label; one that cannot be decoded is grey and says why."""
    samples = inspection.samples
    columns = min(COLUMNS, len(samples))
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, sample in enumerate(samples):
        left, top = number % columns * TILE, number // columns * (TILE + CAPTION)
        try:
            tile = Image.fromarray(pixels(sample.content))
            tile.thumbnail((TILE - 4, TILE - 4))
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        except ImageError as error:
            draw.rectangle((left + 2, top + 2, left + TILE - 3, top + TILE - 3), fill="lightgrey")
            draw.text((left + 8, top + TILE // 2), error.kind, fill="black")
        caption = inspection.called(sample.label).encode("latin-1", "replace").decode("latin-1")
        draw.text((left + 4, top + TILE), caption[: TILE // 6 - 1], fill="black")
    with whole_file(path) as file:
        sheet.save(file, "PNG")


def _sample(shard: Shard, number: int) -> Seen:
    header = shard.pread(_NAME_BYTES, int(shard.index["offset"][number]) - 512)
    key = header.split(b"\0", 1)[0].decode("ascii", "replace").split(".", 1)[0]
    return Seen(Path(shard.name).name, key, int(labels_of(shard)[number]), shard.document(number))
