"""What inspect says of prepared pictures is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.histogram import histogram
from nt_pretrain.data.preparation.image_plan import ImageRecipe
from nt_pretrain.data.preparation.inspection import inspect_pictures, write_contact_sheet
from nt_pretrain.data.preparation.prepare_images import ImageInputs, prepare_images
from tests.data.conftest import Sea
from tests.data.photos import CLASSES, jpeg, write_classes


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", 5)
    for number in range(3):
        (tmp_path / "train" / CLASSES[1] / f"cut_{number}.JPEG").write_bytes(jpeg(seed=number)[:800])
    (tmp_path / "words.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, and more\nn02105855 sheltie\n"
    )
    recipe = ImageRecipe("mini", 9_000, 0.2, check=False)
    inputs = ImageInputs(tmp_path / "train", class_names=tmp_path / "words.txt")
    prepare_images(inputs, tmp_path / "out", recipe, 1, lambda *_: None)
    return tmp_path / "out"


def test_counts_sizes_and_samples(prepared: Path) -> None:
    both = [inspect_pictures(prepared / split, 1000) for split in ("train", "validation")]
    assert (both[0].per_class + both[1].per_class).tolist() == [5, 8, 5]
    contents = {path.read_bytes(): path for path in prepared.with_name("train").rglob("*.JPEG")}
    for found in both:
        assert len(found.samples) == found.manifest.documents == len(found.sizes)
        for sample, size in zip(found.samples, found.sizes, strict=True):
            path = contents.pop(sample.content)
            assert CLASSES[sample.label] == path.parent.name and size == len(sample.content)
            assert sample.key.endswith(f"-{path.stem}")
    assert not contents
    assert any("goldfish" in line and "60 x 4" in line for line in both[0].lines(100))


def test_few_samples_are_spread_over_all_shards(prepared: Path) -> None:
    found = inspect_pictures(prepared / "train", 3)
    keys = [int(sample.key.split("-")[0]) for sample in found.samples]
    assert keys[0] == 0 and keys[-1] == found.manifest.documents - 1 and len(keys) == 3


def test_the_contact_sheet_shows_the_samples(prepared: Path, tmp_path: Path) -> None:
    found = inspect_pictures(prepared / "train", 12)
    for name in ("a.png", "b.png"):
        write_contact_sheet(found, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (8 * 144, 2 * (144 + 14))
        assert sheet.getpixel((72, 72)) != (255, 255, 255)


def test_the_histogram_counts_every_size() -> None:
    assert [line.split()[:4] for line in histogram(np.array([1, 4, 7, 16, 31]))] == [
        ["1", "to", "1", "1"],
        ["2", "to", "3", "0"],
        ["4", "to", "7", "2"],
        ["8", "to", "15", "0"],
        ["16", "to", "31", "2"],
    ]


def test_text_has_no_pictures(sea: Sea) -> None:
    with pytest.raises(DataError, match="holds text, not pictures"):
        inspect_pictures(sea.text / "train", 4)
