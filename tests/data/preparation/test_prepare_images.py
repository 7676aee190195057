"""Shards of pictures are a function of the pictures, whatever they come from and whatever interrupts the writing."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.labelled_shards import key_of_picture, labels_of
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.preparation import prepare_images as module
from nt_pretrain.data.preparation.documents import Problems
from nt_pretrain.data.preparation.image_plan import ImageRecipe
from nt_pretrain.data.preparation.prepare_images import ImageInputs, check_same_images, prepare_images
from nt_pretrain.data.preparation.verify import verify
from nt_pretrain.data.shards import Shard, index_path
from nt_pretrain.data.tokenizer import Tokenizer
from tests.data.photos import CLASSES, encoded, jpeg, photo, tar_of_class_tars, write_classes, write_tar

RECIPE = ImageRecipe("mini", shard_bytes=12_000, validation_share=0.2)
APART = replace(RECIPE, validation_share=None)


def make(inputs: ImageInputs, out: Path, recipe: ImageRecipe = RECIPE, workers: int = 1) -> Problems:
    return prepare_images(inputs, out, recipe, workers, lambda *_: None)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name.endswith((".tar", ".npy"))}


def samples(split: Path) -> list[tuple[str, bytes, int]]:
    """Key, bytes and label of every sample, as WebDataset reads them."""
    found = []
    for path in sorted(split.glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            found.append((sample["__key__"], sample.get("jpg") or sample["png"], int(sample["cls"])))
    return found


@pytest.fixture
def train(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", 8)
    return tmp_path / "train"


def test_every_picture_is_in_one_split_with_its_bytes_and_label(train: Path, tmp_path: Path) -> None:
    make(ImageInputs(train), tmp_path / "out")
    found = samples(tmp_path / "out" / "train") + samples(tmp_path / "out" / "validation")
    expected = {path.read_bytes(): CLASSES.index(path.parent.name) for path in train.rglob("*.JPEG")}
    assert {content: label for _, content, label in found} == expected
    assert len(found) == len(expected) == 24
    manifest = read_manifest(tmp_path / "out" / "train")
    assert (manifest.format, manifest.classes, manifest.class_names) == ("images", list(CLASSES), [])
    assert [shard.name for shard in manifest.shards][:2] == ["mini-train-000000.tar", "mini-train-000001.tar"]
    assert len(manifest.shards) > 2
    (source,) = manifest.sources
    assert (source.name, source.files) == ("train", 24)
    named = sorted((f"{path.parent.name}/{path.name}", path.read_bytes()) for path in train.rglob("*.JPEG"))
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in named)
    assert source.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert str(tmp_path) not in manifest.to_text(), "no path of this machine"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "validation"}


def test_the_order_is_that_of_hashes(train: Path, tmp_path: Path) -> None:
    make(ImageInputs(train), tmp_path / "out")
    keys = [key for key, _, _ in samples(tmp_path / "out" / "train")]
    assert keys == sorted(keys) and not any("." in key for key in keys)
    names = [f"{key.split('-')[1].split('_')[0]}/{key.split('-')[1]}.JPEG" for key in keys]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()[8:])


def test_a_sample_is_one_positioned_read(train: Path, tmp_path: Path) -> None:
    make(ImageInputs(train), tmp_path / "out")
    read = []
    for entry in read_manifest(tmp_path / "out" / "train").shards:
        shard = Shard.open(tmp_path / "out" / "train" / entry.name)
        read += [(shard.document(number), int(labels_of(shard)[number])) for number in range(len(shard))]
        assert len(shard) == entry.documents
        shard.close()
    assert read == [(content, label) for _, content, label in samples(tmp_path / "out" / "train")]


def test_folders_tars_and_any_number_of_processes_give_the_same_bytes(train: Path, tmp_path: Path) -> None:
    pictures = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in train.rglob("*.JPEG")}
    make(ImageInputs(train), tmp_path / "a")
    make(ImageInputs(train), tmp_path / "b", workers=2)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    make(ImageInputs(tar_of_class_tars(tmp_path / "train.tar", pictures)), tmp_path / "c")
    assert shards_of(tmp_path / "a") == shards_of(tmp_path / "c")
    prints = [read_manifest(tmp_path / name / "train").fingerprint for name in "abc"]
    assert len(set(prints)) == 1


def test_the_layout_of_ilsvrc(train: Path, tmp_path: Path) -> None:
    held = {f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(seed=90 + number) for number in range(1, 5)}
    wnids = ["n02105855", "n01440764", "n01440764", "n01443537"]
    (tmp_path / "labels.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    (tmp_path / "words.txt").write_text("n01443537 goldfish, Carassius auratus\nn01440764 tench\nn02105855 sheltie\n")
    inputs = ImageInputs(train, write_tar(tmp_path / "val.tar", held), tmp_path / "labels.txt", tmp_path / "words.txt")
    make(inputs, tmp_path / "out", APART)
    found = {content: label for _, content, label in samples(tmp_path / "out" / "validation")}
    assert found == {content: CLASSES.index(wnid) for content, wnid in zip(held.values(), wnids, strict=True)}
    assert len(samples(tmp_path / "out" / "train")) == 24
    manifest = read_manifest(tmp_path / "out" / "validation")
    assert manifest.class_names == ["tench", "goldfish, Carassius auratus", "sheltie"]
    assert manifest.split_rule == "validation: given apart"


def test_the_devkits_numbers_are_refused(train: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("490\n")
    val = write_tar(tmp_path / "val.tar", {"ILSVRC2012_val_00000001.JPEG": jpeg()})
    with pytest.raises(
        DataError, match=r"numbers \(490\).*ILSVRC2012_validation_ground_truth\.txt follow the devkit's"
    ):
        make(ImageInputs(train, val, tmp_path / "labels.txt"), tmp_path / "out", APART)
    (tmp_path / "labels.txt").write_text("n09\n")
    with pytest.raises(DataError, match="classes of validation that train does not have: n09"):
        make(ImageInputs(train, val, tmp_path / "labels.txt"), tmp_path / "out", APART)
    (tmp_path / "words.txt").write_text("n01440764 tench\n")
    with pytest.raises(DataError, match="--class-names has no name for n01443537, n02105855"):
        make(ImageInputs(train, class_names=tmp_path / "words.txt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_that_cannot_be_decoded_are_counted_and_named(train: Path, tmp_path: Path) -> None:
    folder = train / "n01440764"
    (folder / "cut.JPEG").write_bytes(jpeg()[:700])
    (folder / "page.JPEG").write_bytes(b"<html>")
    (folder / "none.JPEG").touch()
    (folder / "png.JPEG").write_bytes(encoded(photo(30, 30), "PNG"))
    problems = make(ImageInputs(train), tmp_path / "out")
    assert problems.counts == {
        "pictures left out: truncated": 1,
        "pictures left out: not an image": 1,
        "pictures left out: empty": 1,
    }
    lists = (tmp_path / "out").rglob("left-out.jsonl")
    named = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    assert {(each["name"], each["kind"]) for each in named} == {
        ("n01440764/cut.JPEG", "truncated"),
        ("n01440764/page.JPEG", "not an image"),
        ("n01440764/none.JPEG", "empty"),
    }
    manifest = read_manifest(tmp_path / "out" / "train")
    assert manifest.problems == problems.counts
    found = samples(tmp_path / "out" / "train") + samples(tmp_path / "out" / "validation")
    assert len(found) == 25 and any(key.endswith("-png") for key, _, _ in found)


def test_without_the_check_only_what_is_no_image_is_left_out(train: Path, tmp_path: Path) -> None:
    (train / "n01440764" / "cut.JPEG").write_bytes(jpeg()[:700])
    problems = make(ImageInputs(train), tmp_path / "out", replace(RECIPE, check=False))
    assert problems.counts == {}
    found = samples(tmp_path / "out" / "train") + samples(tmp_path / "out" / "validation")
    assert len(found) == 25


def test_sources_without_one_good_picture_end_it(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "train" / "a" / f"{number}.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"none of the \d+ pictures of mini-.*\.tar can be decoded \(first: a/\d+\.jpg"):
        make(ImageInputs(tmp_path / "train"), tmp_path / "out")
    assert not list((tmp_path / "out.partial").rglob("*.t*"))


def test_after_an_interruption_only_what_is_missing_is_written(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(ImageInputs(train), tmp_path / "whole")
    real, written = module.write_planned, []

    def counted(folder: Path, plan: module.ShardPlan, name: str) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        real(folder, plan, name)
        written.append((plan.split, plan.number))

    monkeypatch.setattr(module, "write_planned", counted)
    with pytest.raises(KeyboardInterrupt):
        make(ImageInputs(train), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # As a kill would leave it: a shard without its note, and half of another.
    partial = tmp_path / "out.partial"
    next((partial / "notes").glob("*")).unlink()
    (partial / "train" / "mini-train-000009.tar.tmp").write_bytes(b"half")
    before = list(written)
    monkeypatch.setattr(module, "write_planned", lambda *plan: (real(*plan), written.append(plan[1].number)))
    make(ImageInputs(train), tmp_path / "out")
    shards = sum(len(read_manifest(tmp_path / "out" / split).shards) for split in ("train", "validation"))
    assert len(written) - len(before) == shards - 2
    (tmp_path / "out" / "train" / "mini-train-000009.tar.tmp").unlink(missing_ok=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not partial.exists()


def test_other_options_do_not_take_up_what_was_begun(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_planned", interrupt)
        make(ImageInputs(train), tmp_path / "out")
    with pytest.raises(DataError, match=r"out\.partial was begun from other inputs or with other options"):
        make(ImageInputs(train), tmp_path / "out", replace(RECIPE, shard_bytes=9_000))
    (train / "n01440764" / "new.JPEG").write_bytes(jpeg())
    with pytest.raises(DataError, match=r"out\.partial was begun from other inputs or with other options"):
        make(ImageInputs(train), tmp_path / "out")


def test_a_folder_made_otherwise_is_not_taken_for_this_one(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(ImageInputs(train), out)
    check_same_images(ImageInputs(train), out, RECIPE, lambda *_: None)
    with pytest.raises(DataError, match=r"(?s)prepared differently:\n  --name: mini -> maxi"):
        check_same_images(ImageInputs(train), out, replace(RECIPE, name="maxi"), lambda *_: None)
    (train / "n01440764" / "new.JPEG").write_bytes(jpeg())
    with pytest.raises(DataError, match=r"inputs: train \(24 pictures, .*-> train \(25 pictures"):
        check_same_images(ImageInputs(train), out, RECIPE, lambda *_: None)
    shutil.rmtree(train)
    check_same_images(ImageInputs(train), out, RECIPE, lambda *_: None)  # raw pictures may be deleted


def test_verify_finds_every_flipped_byte(train: Path, tmp_path: Path) -> None:
    make(ImageInputs(train), tmp_path / "out")
    assert verify(tmp_path / "out", lambda *_: None) == []
    shard = tmp_path / "out" / "train" / "mini-train-000001.tar"
    content = shard.read_bytes()
    offset = int(np.load(index_path(shard))[1]["offset"])
    line = f"{shard}: is not what the manifest lists (sha256)"
    for place in range(0, len(content), 397):
        damaged = bytearray(content)
        damaged[place] ^= 1
        shard.write_bytes(damaged)
        assert verify(tmp_path / "out", lambda *_: None)[0] == line
    damaged = bytearray(content)
    damaged[offset + 5] ^= 1
    shard.write_bytes(damaged)
    assert verify(tmp_path / "out", lambda *_: None) == [line, f"  picture 1 at byte {offset} is damaged"]


def test_pictures_are_not_taken_for_text(train: Path, tmp_path: Path) -> None:
    make(ImageInputs(train), tmp_path / "out")
    tokenizer = Tokenizer(None, "0" * 64, 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds pictures, and this model is trained on text"):
        Split.open(tmp_path / "out" / "train", tokenizer)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("n01/n01_10026.JPEG", "0000007-n01_10026"),
        ("cat/a.b c/ü.d.png", "0000007-__d"),
        ("cat/../" + "x" * 300 + ".jpg", "0000007-" + "x" * 64),
    ],
)
def test_keys_have_no_dots_and_fit_a_header(name: str, key: str) -> None:
    assert key_of_picture(7, name) == key
