"""Pictures are found in every layout people have, under one name, and damaged tars are not taken for short ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.documents import Problems
from nt_pretrain.data.preparation.pictures import Picture, find_pictures, read_labels
from tests.data.photos import jpeg, tar_of_class_tars, write_classes, write_tar


def find(path: Path, labels: Path | None = None) -> dict[str, bytes]:
    return {picture.name: picture.read() for picture in find_pictures(path, labels, Problems())}


def test_folders_and_tars_hold_the_same_pictures(tmp_path: Path) -> None:
    written = write_classes(tmp_path / "train", 3)
    assert find(tmp_path / "train") == written
    assert find(tar_of_class_tars(tmp_path / "ILSVRC2012_img_train.tar", written)) == written
    assert find(write_tar(tmp_path / "a.tar", written)) == written
    with_folder = {f"./train/{name}": content for name, content in written.items()}
    assert find(write_tar(tmp_path / "b.tar", with_folder)) == written


def test_the_folder_above_train_and_val_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 1)
    write_classes(tmp_path / "val", 1)
    with pytest.raises(DataError, match=r"holds train and val in the place of classes; give .*/train, and the other"):
        find(tmp_path)


def test_folders_may_be_deep_and_links(tmp_path: Path) -> None:
    written = write_classes(tmp_path / "elsewhere", 2, classes=("cat",))
    (tmp_path / "all" / "dog" / "mine").mkdir(parents=True)
    (tmp_path / "all" / "dog" / "mine" / "a.b.PNG").write_bytes(b"x")
    (tmp_path / "all" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    assert find(tmp_path / "all") == {**written, "dog/mine/a.b.PNG": b"x"}
    (tmp_path / "all" / "dog" / "loop").symlink_to(tmp_path / "all")
    with pytest.raises(DataError, match="leads by a link to a folder that was read already"):
        find(tmp_path / "all")


def test_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 1)
    (tmp_path / "train" / "n01440764" / "Thumbs.db").touch()
    (tmp_path / "train" / "n01440764" / ".hidden.jpg").touch()
    (tmp_path / "train" / "n09999999").mkdir()
    problems = Problems()
    assert len(find_pictures(tmp_path / "train", None, problems)) == 3
    assert problems.lines() == [
        "1 files passed over, since their names do not end in .jpg, .jpeg, .png, .webp "
        f"(first: {tmp_path}/train/n01440764/Thumbs.db)",
        f"1 class folders without a picture (first: {tmp_path}/train/n09999999)",
    ]


VALIDATION = {f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(seed=number) for number in (1, 2, 3)}


@pytest.mark.parametrize(
    "text",
    [
        "n01\nn02\nn01\n",
        "ILSVRC2012_val_00000003.JPEG n01\nILSVRC2012_val_00000001.JPEG n01\nILSVRC2012_val_00000002.JPEG\tn02\n",
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n02 85 1 499 272 n02 8 1 49 27\n"
        "ILSVRC2012_val_00000003,n01 1 2 3 4\nILSVRC2012_val_00000001,n01 1 2 3 4\n",
    ],
)
def test_labels_come_from_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    expected = {
        f"{label}/{name}": content
        for label, (name, content) in zip(("n01", "n02", "n01"), VALIDATION.items(), strict=True)
    }
    tar = write_tar(tmp_path / "ILSVRC2012_img_val.tar", dict(reversed(VALIDATION.items())))
    assert find(tar, tmp_path / "labels.txt") == expected
    (tmp_path / "val").mkdir()
    for name, content in VALIDATION.items():
        (tmp_path / "val" / name).write_bytes(content)
    assert find(tmp_path / "val", tmp_path / "labels.txt") == expected


def test_labels_that_do_not_fit_say_so(tmp_path: Path) -> None:
    tar, labels = write_tar(tmp_path / "val.tar", VALIDATION), tmp_path / "labels.txt"
    with pytest.raises(DataError, match=r"3 pictures lie in no class folder .*give --validation-labels FILE"):
        find(tar)
    labels.write_text("n01\nn02\n")
    with pytest.raises(DataError, match=r"labels\.txt has 2 classes for the 3 pictures of .*val\.tar"):
        find(tar, labels)
    labels.write_text("ILSVRC2012_val_00000001 n01\nILSVRC2012_val_00000002 n01\n")
    with pytest.raises(DataError, match=r"no class for 1 pictures of .* \(first: ILSVRC2012_val_00000003\.JPEG\)"):
        find(tar, labels)
    labels.write_text("ILSVRC2012_val_00000001 n01\nn02\n")
    with pytest.raises(DataError, match=r"labels\.txt:2: a class without a file name"):
        read_labels(labels)
    write_classes(tmp_path / "train", 1)
    with pytest.raises(DataError, match=r"has class folders already; leave .* out"):
        find(tmp_path / "train", labels)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    tar = tar_of_class_tars(tmp_path / "train.tar", write_classes(tmp_path / "train", 3))
    content = tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(content[: int(len(content) * share) // 512 * 512])
    with pytest.raises(DataError, match=r"train\.tar.*(damaged or cut off|no plain tar|unexpected end)"):
        find(tar)


def test_a_tar_cut_off_between_members_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "val.tar", {"a/1.jpg": bytes(512), "a/2.jpg": bytes(512)})
    tar.write_bytes(tar.read_bytes()[:1024])
    with pytest.raises(DataError, match=r"val\.tar: is damaged or cut off at byte 1,024"):
        find(tar)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "val.tar", {"a/1.jpg": bytes(512), "a/2.jpg": bytes(512)})
    content = bytearray(tar.read_bytes())
    content[1024 + 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"val\.tar: is damaged or cut off at byte 1,024"):
        find(tar)


def test_names_in_a_tar_are_never_paths(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"../../etc/x.jpg": b"1", "/etc/y.jpg": b"2"})
    assert sorted(find(tar).values()) == [b"1", b"2"]


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        find(tmp_path / "missing")
    (tmp_path / "train.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))
    with pytest.raises(DataError, match=r"is no plain tar .*unpack \.gz"):
        find(tmp_path / "train.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures; they are known by"):
        find(tmp_path / "empty")
    twice = write_tar(tmp_path / "a.tar", {"a/x.jpg": b"1", "./a/x.jpg": b"2"})
    with pytest.raises(DataError, match=r"a\.tar: holds a/x\.jpg twice"):
        find(twice)


def test_a_source_that_changed_meanwhile_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"12")
    with pytest.raises(DataError, match=r"ended while a/x\.jpg was read; has the file changed"):
        Picture("a/x.jpg", str(tmp_path / "x.jpg"), 0, 3).read()
