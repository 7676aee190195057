"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) as folders of JPEGs: small labelled pictures for anyone.

60,000 pictures to train and 10,000 to test on, of ten kinds of clothing, grey, 28 x 28 pixels, MIT-licensed, from the
Debian package ``dataset-fashion-mnist``. It holds them in the IDX format of MNIST: two zero bytes, the type of the
numbers (8: bytes), the number of dimensions, each dimension as 4 bytes, big-endian, then the numbers.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.packages import fetch_package

PACKAGE = "dataset-fashion-mnist"
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""In the order of the labels."""
SPLITS = {"train": "train", "test": "t10k"}
"""Our folders, and the first part of the names of the files they are made from."""
QUALITY = 95

Progress = Callable[[str, int, int], None]


def class_folder(label: int) -> str:
    """``0-t-shirt-top``: sorted, the folders stand in the order of the labels."""
    return f"{label}-{CLASS_NAMES[label].lower().replace('/', '-').replace(' ', '-')}"


def fetch_fashion(folder: Path, progress: Progress) -> dict[str, int]:
    """Download the package and fill ``folder``, see :func:`write_pictures`.

    Raises:
        DataError: apt cannot fetch it, or it does not hold what it should.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            unpacked = fetch_package(PACKAGE, "apt", Path(temporary))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = str(getattr(error, "stderr", "") or error).strip()[-300:]
            raise DataError(
                f"apt could not fetch {PACKAGE}: {reason}\nIt needs Debian or Ubuntu, the network, and package lists "
                "(apt-get update), but not root."
            ) from None
        return write_pictures(unpacked / "usr/share/datasets/fashion-mnist", folder, progress)


def write_pictures(source: Path, folder: Path, progress: Progress) -> dict[str, int]:
    """Write ``train/CLASS/NUMBER.jpg``, ``test/CLASS/NUMBER.jpg`` and ``class-names``; returns pictures by split.

    NUMBER is the place in the source, so nobody's file depends on the other files. JPEGs are grey, of quality 95: a
    pixel is off by about one level of 255.

    Args:
        source: folder of ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz`` and the same with ``t10k``.

    Raises:
        DataError: a file is missing, damaged, or not laid out as described above.
    """
    counts = {}
    for split, name in SPLITS.items():
        pictures = read_idx(source / f"{name}-images-idx3-ubyte.gz", 3)
        labels = read_idx(source / f"{name}-labels-idx1-ubyte.gz", 1)
        if len(pictures) != len(labels):
            raise DataError(f"{source}: {len(pictures):,} pictures but {len(labels):,} labels in {name}")
        if labels.size and labels.max() >= len(CLASS_NAMES):
            raise DataError(f"{source}: label {labels.max()} in {name}; there are {len(CLASS_NAMES)} classes, 0 to 9")
        for label in range(len(CLASS_NAMES)):
            (folder / split / class_folder(label)).mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY)
            (folder / split / class_folder(label) / f"{number:05d}.jpg").write_bytes(content.getvalue())
            if number % 1000 == 0:
                progress(f"writing pictures of {split}", number, len(pictures))
        counts[split] = len(pictures)
    lines = [f"{class_folder(label)} {name}\n" for label, name in enumerate(CLASS_NAMES)]
    (folder / "class-names").write_text("".join(lines), encoding="utf-8")
    return counts


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The numbers of a gzipped IDX file of bytes: uint8 of so many dimensions.

    Raises:
        DataError: it is missing, damaged, or of another kind.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    head = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < head:
        raise DataError(f"{path}: no IDX file of bytes with {dimensions} dimensions; it begins with {content[:4]!r}")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, head, 4))
    if len(content) - head != (size := int(np.prod(shape, dtype=np.int64))):
        raise DataError(f"{path}: {len(content) - head:,} bytes of {size:,}, as its shape {shape} says")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
