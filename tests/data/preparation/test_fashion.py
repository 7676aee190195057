"""Fashion-MNIST's files become folders of JPEGs with the right pictures in the right classes, or an error in words."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.prepare import main
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.preparation.fashion import CLASS_NAMES, SPLITS, class_folder, read_idx, write_pictures
from nt_pretrain.data.preparation.inspection import inspect_pictures

TRAIN, TEST = 30, 10


def idx(numbers: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, numbers.ndim]) + b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    return gzip.compress(head + numbers.tobytes(), mtime=0)


def smooth(count: int, seed: int) -> np.ndarray:
    """Pictures [count, 28, 28] that a JPEG of quality 95 keeps, no two alike."""
    draw = np.random.Generator(np.random.PCG64(seed))
    slopes = draw.uniform(-1, 1, (count, 2, 1, 1))
    y, x = np.mgrid[-14:14, -14:14]
    return (128 + 4 * (slopes[:, 0] * y + slopes[:, 1] * x)).astype(np.uint8)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package's four files with few pictures; the labels go round."""
    folder = tmp_path / "package"
    folder.mkdir()
    for seed, (name, count) in enumerate(zip(SPLITS.values(), (TRAIN, TEST), strict=True)):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(smooth(count, seed)))
        labels = (np.arange(count) * 7 % 10).astype(np.uint8)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


def test_every_picture_stands_in_its_class(package: Path, tmp_path: Path) -> None:
    seen = []
    counts = write_pictures(package, tmp_path / "out", lambda what, done, total: seen.append((what, done, total)))
    assert counts == {"train": TRAIN, "test": TEST}
    assert seen == [("writing pictures of train", 0, TRAIN), ("writing pictures of test", 0, TEST)]
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == TRAIN + TEST
    for seed, (split, count) in enumerate(counts.items()):
        for number, pixels in enumerate(smooth(count, seed)):
            path = tmp_path / "out" / split / class_folder(number * 7 % 10) / f"{number:05d}.jpg"
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "L", (28, 28))
                assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 4, path
    assert len(list((tmp_path / "out" / "train").iterdir())) == 10


def test_folders_stand_in_the_order_of_the_labels() -> None:
    folders = [class_folder(label) for label in range(len(CLASS_NAMES))]
    assert folders == sorted(folders) and folders[0] == "0-t-shirt-top" and folders[9] == "9-ankle-boot"


def test_from_pictures_to_shards(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the next command makes of it: labels are those of the source."""
    raw, out = tmp_path / "raw", tmp_path / "fashion"
    write_pictures(package, raw, lambda *_: None)
    (raw / "DONE").write_text("30 pictures in train, 10 in test\n")
    assert main(["corpus", "fashion", "--out", str(raw)]) == 0  # there already: nothing is fetched
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{raw} is there already: 30 pictures in train, 10 in test"
    command = printed[-1].removeprefix("next: python launch/prepare.py ").split()
    assert command[:4] == ["images", str(raw / "train"), "--validation", str(raw / "test")]
    command[command.index("--out") + 1] = str(out)
    assert main([*command, "--workers", "1"]) == 0
    assert main(["verify", str(out)]) == 0 and main(["inspect", str(out)]) == 0
    manifest = read_manifest(out / "train")
    assert manifest.documents == TRAIN and list(manifest.class_names) == list(CLASS_NAMES)
    samples = inspect_pictures(out / "validation", TEST).samples
    assert sorted(sample.label for sample in samples) == list(range(10))
    for sample in samples:
        assert sample.label == int(sample.key.rsplit("-", 1)[1]) * 7 % 10, sample.key


def test_another_corpus_is_not_taken_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "DONE").write_text("1,189 documents\n")
    (tmp_path / "kjv-train.00000-of-00001.json.gz").touch()
    assert main(["corpus", "fashion", "--out", str(tmp_path)]) == 3
    assert "holds another corpus; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: .*No such file"),
        (b"\x1f\x8b", "cannot be read"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-12], "cannot be read"),
        (b"plain", "cannot be read: Not a gzipped file"),
        (idx(np.zeros(3, np.uint8)), "no IDX file of bytes with 3 dimensions"),
        (gzip.compress(bytes([0, 0, 8, 3, 0, 0]), mtime=0), "no IDX file"),
        (
            gzip.compress(gzip.decompress(idx(np.zeros((2, 28, 28), np.uint8))) + b"x", mtime=0),
            "1,569 bytes of 1,568, as its",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "images.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.zeros(9, np.uint8), "10 pictures but 9 labels in t10k"), (np.full(10, 10, np.uint8), "label 10 in t10k")],
)
def test_labels_that_do_not_fit_are_refused(package: Path, tmp_path: Path, labels: np.ndarray, says: str) -> None:
    (package / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    with pytest.raises(DataError, match=says):
        write_pictures(package, tmp_path / "out", lambda *_: None)


def test_without_apt_the_command_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["corpus", "fashion", "--out", str(tmp_path / "raw")]) == 3
    assert "apt could not fetch dataset-fashion-mnist: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_the_real_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if main(["corpus", "fashion", "--out", str(tmp_path / "raw")]) != 0:
        said = capsys.readouterr().err
        assert "apt could not fetch" in said, said
        pytest.skip(said)
    assert "60,000 pictures in train, 10,000 in test" in capsys.readouterr().out
    for split, count in (("train", 6000), ("test", 1000)):
        sizes = {path.name: len(list(path.iterdir())) for path in (tmp_path / "raw" / split).iterdir()}
        assert sizes == {class_folder(label): count for label in range(10)}
