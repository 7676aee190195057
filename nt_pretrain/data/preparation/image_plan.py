"""Which picture goes to which split, shard and place: a function of names and sizes, settled before a byte is read.

Pictures are sorted by a hash of CLASS/FILE (ImageNet's folders are sorted by class, so a window of their own order
would hold one class), and the line is cut into shards of equal bytes. What turns out to be undecodable later leaves a
shard shorter and moves nothing, so shards can be written in any order, by any number of processes, and after an
interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nt_pretrain import __version__
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.pictures import Picture

NAMED = 3
"""Examples in a message."""


@dataclass(frozen=True)
class ImageRecipe:
    """How pictures become shards.

    Attributes:
        name: first part of the shards' names.
        shard_bytes: size that no shard exceeds by more than a picture.
        validation_share: share of pictures held out by hash; None if they come apart.
        check: decode every picture and leave out what cannot be.
    """

    name: str
    shard_bytes: int
    validation_share: float | None
    check: bool = True

    @property
    def split_rule(self) -> str:
        if self.validation_share is None:
            return "validation: given apart"
        share = self.validation_share
        return f"validation: first 8 bytes of the sha256 of class/file, little-endian, below {share} x 2**64"


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: the pictures in their order, the place of the first in its split, and their labels."""

    split: str
    number: int
    first: int
    pictures: list[Picture]
    labels: list[int]
    check: bool


@dataclass(frozen=True)
class Plan:
    """All shards of both splits, and the classes in the order of their labels."""

    classes: list[str]
    class_names: list[str]
    shards: list[ShardPlan]
    digest: str


def plan_shards(
    train: list[Picture], validation: list[Picture] | None, names: dict[str, str], recipe: ImageRecipe
) -> Plan:
    """Settle everything.

    Args:
        validation: None to hold some of ``train`` out.
        names: what people call the classes, or nothing.

    Raises:
        DataError: a split is empty, validation has classes that train does not, or names of classes are missing.
    """
    classes = sorted({picture.label for picture in train})
    splits = {"train": train, "validation": validation} if validation is not None else _held_out(train, recipe)
    for split, pictures in splits.items():
        assert pictures is not None
        if not pictures:
            raise DataError(
                f"the {split} split is empty: {len(train):,} pictures are too few for --validation-share "
                f"{recipe.validation_share}; give another, or --validation with pictures of its own"
            )
    _check_classes(classes, {picture.label for picture in splits["validation"] or []})
    without = [each for each in classes if names and each not in names]
    if without:
        raise DataError(f"--class-names has no name for {_some(without)}")
    digest = hashlib.sha256(f"{__version__} {recipe}\n{classes}\n".encode())
    shards: list[ShardPlan] = []
    for split, pictures in splits.items():
        line = sorted(pictures or [], key=lambda picture: (_hash(picture)[8:], picture.name))
        for each in line:
            digest.update(f"{split} {each.size} {each.name}\n".encode())
        shards += _cut(split, line, classes, recipe)
    return Plan(classes, [names[each] for each in classes] if names else [], shards, digest.hexdigest())


def read_class_names(path: Path) -> dict[str, str]:
    """Names of classes from lines like ``n01440764 tench, Tinca tinca``.

    Raises:
        DataError: it cannot be read, or a line is of another kind.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = line.split(maxsplit=1)
            if len(parts) != 2:
                raise DataError(f"{path}:{number}: no class and name: {line.strip()!r}")
            found[parts[0]] = parts[1].strip()
    return found


def _held_out(pictures: list[Picture], recipe: ImageRecipe) -> dict[str, list[Picture] | None]:
    assert recipe.validation_share is not None, "either validation pictures or a share of the others"
    limit = int(recipe.validation_share * 2**64)
    held = [int.from_bytes(_hash(picture)[:8], "little") < limit for picture in pictures]
    return {
        "train": [picture for picture, out in zip(pictures, held, strict=True) if not out],
        "validation": [picture for picture, out in zip(pictures, held, strict=True) if out],
    }


def _cut(split: str, line: list[Picture], classes: list[str], recipe: ImageRecipe) -> list[ShardPlan]:
    """Shards of about equal bytes: lanes of a run are as long as one another, so a small last shard helps nobody."""
    label_of = {name: label for label, name in enumerate(classes)}
    total = sum(picture.size for picture in line)
    count = max(1, -(-total // recipe.shard_bytes))
    groups: list[list[Picture]] = [[] for _ in range(count)]
    before = 0
    for picture in line:
        groups[min(count - 1, before * count // max(1, total))].append(picture)
        before += picture.size
    shards: list[ShardPlan] = []
    first = 0
    for group in filter(None, groups):
        labels = [label_of[picture.label] for picture in group]
        shards.append(ShardPlan(split, len(shards), first, group, labels, recipe.check))
        first += len(group)
    return shards


def _hash(picture: Picture) -> bytes:
    return hashlib.sha256(picture.name.encode("utf-8", "surrogateescape")).digest()


def _check_classes(train: Sequence[str], validation: set[str]) -> None:
    unknown = sorted(validation - set(train))
    if unknown and all(each.isdigit() for each in unknown):
        raise DataError(
            f"validation labels are numbers ({_some(unknown)}), train's classes are not. The numbers of "
            "ILSVRC2012_validation_ground_truth.txt follow the devkit's own order, not the sorted one: give a file of "
            "class names, such as imagenet_2012_validation_synset_labels.txt or Kaggle's LOC_val_solution.csv"
        )
    if unknown:
        raise DataError(f"classes of validation that train does not have: {_some(unknown)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
