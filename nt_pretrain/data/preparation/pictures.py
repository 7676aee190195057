"""Finds labelled pictures where people have them: folders of class folders, ILSVRC's tars, flat folders with labels.

Nothing is unpacked and no pixel read: a picture is a place (file, offset, size). A picture is called CLASS/FILE
whatever it comes from, so folders and tars of the same pictures give the same shards.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.documents import Problems

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
"""No names of classes: who gives the folder above them would train on two classes of a million pictures."""
PASSED_OVER = f"files passed over, since their names do not end in {', '.join(ENDINGS)}"


class Picture(NamedTuple):
    """``name`` is CLASS/FILE; the bytes are ``size`` from ``offset`` on of the file or tar ``path``."""

    name: str
    path: str
    offset: int
    size: int

    @property
    def label(self) -> str:
        return self.name.split("/", 1)[0]

    def read(self) -> bytes:
        """The bytes of the picture.

        Raises:
            DataError: the file cannot be read, or has become shorter.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from None
        if len(content) != self.size:
            raise DataError(f"{self.path}: ended while {self.name} was read; has the file changed since the start?")
        return content


Seen = Callable[[int], None]
"""Told the number of pictures found so far."""


def find_pictures(path: Path, labels: Path | None, problems: Problems, seen: Seen = lambda _: None) -> list[Picture]:
    """All pictures of an input, in no particular order.

    Args:
        path: a folder of class folders (to any depth below), a tar of class tars or of class folders; with ``labels``
            also a flat folder or tar of pictures.
        labels: file that says the class of each picture of a flat input (:func:`read_labels`).

    Raises:
        DataError: the input is not there or damaged, holds no pictures, or labels are missing or needless.
    """
    if path.is_dir():
        found = _in_folder(path, problems)
    elif path.is_file():
        found = _in_tar(path, problems)
    else:
        raise DataError(f"{path}: there is no such file or folder")
    pictures: list[Picture] = []
    try:
        for picture in found:
            pictures.append(picture)
            if len(pictures) % 1024 == 0:
                seen(len(pictures))
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not pictures:
        raise DataError(f"{path}: no pictures; they are known by {', '.join(ENDINGS)}")
    pictures = _without_common_folder(pictures)
    splits = sorted({picture.label for picture in pictures}.intersection(SPLIT_FOLDERS))
    if splits:
        raise DataError(
            f"{path}: holds {' and '.join(splits)} in the place of classes; give {path / 'train'}, and the other as "
            "--validation"
        )
    flat = [picture for picture in pictures if "/" not in picture.name]
    if labels is not None:
        if len(flat) < len(pictures):
            raise DataError(f"{path} has class folders already; leave {labels} out")
        pictures = _labelled(pictures, path, labels)
    elif flat:
        raise DataError(
            f"{path}: {len(flat):,} pictures lie in no class folder (first: {min(flat).name}); for ILSVRC's validation "
            "pictures give --validation-labels FILE"
        )
    return pictures


def _without_common_folder(pictures: list[Picture]) -> list[Picture]:
    """``train/CLASS/FILE``, as ``tar cf train.tar train`` makes it, is CLASS/FILE."""
    top = pictures[0].label
    while all(each.name.count("/") >= 2 and each.label == top for each in pictures):
        pictures = [each._replace(name=each.name.split("/", 1)[1]) for each in pictures]
        top = pictures[0].label
    return pictures


def read_labels(path: Path) -> tuple[dict[str, str], list[str]]:
    """Classes by the name of the file (without its ending), or, if there are no names, in the order of sorted names.

    Lines are ``ILSVRC2012_val_00000001.JPEG n01751748``, Kaggle's ``ILSVRC2012_val_00000001,n01751748 85 1 499 272``
    under a header, or only ``n01751748``.

    Raises:
        DataError: it cannot be read, or lines of both kinds are mixed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    rows = [line.replace(",", " ").split() for line in lines if line.strip() and not line.startswith("ImageId,")]
    alone = [row[0] for row in rows if len(row) == 1]
    if alone and len(alone) < len(rows):
        number = next(n for n, line in enumerate(lines, 1) if len(line.replace(",", " ").split()) == 1)
        raise DataError(f"{path}:{number}: a class without a file name, while other lines have one")
    return {os.path.splitext(row[0])[0]: row[1] for row in rows if len(row) > 1}, alone


def _labelled(pictures: list[Picture], path: Path, labels: Path) -> list[Picture]:
    by_name, in_order = read_labels(labels)
    if in_order:
        if len(in_order) != len(pictures):
            raise DataError(f"{labels} has {len(in_order):,} classes for the {len(pictures):,} pictures of {path}")
        classes = dict(zip(sorted(picture.name for picture in pictures), in_order, strict=True))
    else:
        classes = {each.name: by_name.get(os.path.splitext(each.name)[0], "") for each in pictures}
        missing = sorted(name for name, label in classes.items() if not label)
        if missing:
            raise DataError(f"{labels} has no class for {len(missing):,} pictures of {path} (first: {missing[0]})")
    return [picture._replace(name=f"{classes[picture.name]}/{picture.name}") for picture in pictures]


def _in_folder(root: Path, problems: Problems) -> Iterator[Picture]:
    been: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in been:
            raise DataError(f"{folder}: leads by a link to a folder that was read already ({real})")
        been.add(real)
        # Hidden files and folders are passed over, as with text.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{Path(inside).as_posix()}/"
        for file in sorted(name for name in files if not name.startswith(".")):
            if not file.lower().endswith(ENDINGS):
                problems.add(PASSED_OVER, os.path.join(folder, file))
                continue
            place = os.path.join(folder, file)
            yield Picture(prefix + file, place, 0, os.stat(place).st_size)
        if prefix and not files and not folders:
            problems.add("class folders without a picture", folder)


def _in_tar(path: Path, problems: Problems) -> Iterator[Picture]:
    seen: set[str] = set()
    with path.open("rb") as raw:
        for place in _members(raw, str(path), path.stat().st_size):
            inner = place.name.lower().endswith(".tar")
            for each in _members(raw, f"{path}: {place.name}", place.offset + place.size, place) if inner else [place]:
                name = f"{Path(place.name).stem}/{each.name}" if inner else each.name
                if not name.lower().endswith(ENDINGS):
                    problems.add(PASSED_OVER, f"{path}: {name}")
                    continue
                if name in seen:
                    raise DataError(f"{path}: holds {name} twice")
                seen.add(name)
                yield each._replace(name=name)


def _members(raw: BinaryIO, where: str, limit: int, outer: Picture | None = None) -> Iterator[Picture]:
    """The regular files of the tar that begins at ``outer`` (or the file) and ends at byte ``limit``.

    Raises:
        DataError: it is compressed, or ends without the empty block that closes a tar: cut off, or a damaged header,
            either of which tarfile takes for the end.
    """
    raw.seek(0 if outer is None else outer.offset)
    try:
        tar = tarfile.TarFile(fileobj=raw)
    except tarfile.ReadError as error:
        raise DataError(f"{where}: is no plain tar ({error}); unpack .gz and the like first, leave the tar") from None
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million of them would be kept otherwise
        if member.offset_data + member.size > limit:
            break
        if member.isreg():
            yield Picture(member.name.removeprefix("./"), str(raw.name), member.offset_data, member.size)
    raw.seek(tar.offset)
    if member is not None or raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{where}: is damaged or cut off at byte {tar.offset:,}; compare its checksum, load it again")
