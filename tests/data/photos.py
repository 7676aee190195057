"""Pictures that look like photographs to a decoder, the same on every machine, and the layouts they are kept in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02105855")


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth areas, edges and a little noise."""
    draw = np.random.Generator(np.random.PCG64(seed))
    coarse = draw.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    smooth[height // 3 :, width // 2 :] = 255 - smooth[height // 3 :, width // 2 :]
    return Image.fromarray((smooth + draw.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", *, quality: int = 90, progressive: bool = False) -> bytes:
    file = io.BytesIO()
    options = {"quality": quality, "progressive": progressive} if kind == "JPEG" else {}
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(height: int = 60, width: int = 80, seed: int = 0) -> bytes:
    return encoded(photo(height, width, seed))


def write_classes(
    folder: Path, per_class: int, *, classes: tuple[str, ...] = CLASSES, seed: int = 0
) -> dict[str, bytes]:
    """``folder/CLASS/CLASS_NUMBER.JPEG``; returns bytes by CLASS/FILE."""
    written = {}
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for picture in range(per_class):
            content = jpeg(40 + picture, 60, seed + 1000 * number + picture)
            (folder / name / f"{name}_{picture}.JPEG").write_bytes(content)
            written[f"{name}/{name}_{picture}.JPEG"] = content
    return written


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_300_000_000
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_of_class_tars(path: Path, pictures: dict[str, bytes]) -> Path:
    """ILSVRC2012_img_train.tar's layout: a tar of a tar per class, whose members are bare file names."""
    inner: dict[str, bytes] = {}
    for label in sorted({name.split("/")[0] for name in pictures}):
        part = {name.split("/")[1]: content for name, content in pictures.items() if name.startswith(f"{label}/")}
        inner[f"{label}.tar"] = write_tar(path.with_name("inner.tar"), part).read_bytes()
    path.with_name("inner.tar").unlink()
    return write_tar(path, inner)
