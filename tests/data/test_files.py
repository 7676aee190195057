"""Files and folders appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import resumed_folder, whole_file, whole_folder


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path, interruption: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(interruption), whole_file(path) as file:
        file.write(b"new")
        raise interruption
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    (tmp_path / "deep" / "folder.tmp").mkdir(parents=True)
    (tmp_path / "deep" / "folder.tmp" / "left by a killed attempt").touch()
    with whole_folder(path) as folder:
        (folder / "inside").touch()
        assert not path.exists()
    assert [each.name for each in path.iterdir()] == ["inside"]
    assert [each.name for each in path.parent.iterdir()] == ["folder"]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "folder") as folder:
        (folder / "inside").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_others_made_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "my only copy.txt").write_text("precious")
    with pytest.raises(DataError, match="exists and was not made by this command"), whole_folder(tmp_path):
        pass
    assert (tmp_path / "train" / "my only copy.txt").read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "inside").touch()
    assert (tmp_path / "folder" / "inside").exists()


def test_a_resumed_folder_keeps_what_an_interruption_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), resumed_folder(out, "plan a") as folder:
        (folder / "first").touch()
        raise KeyboardInterrupt
    assert not out.exists()
    with (
        pytest.raises(DataError, match=r"out\.partial was begun from other inputs or with other options"),
        resumed_folder(out, "plan b"),
    ):
        pass
    with resumed_folder(out, "plan a") as folder:
        assert (folder / "first").exists()
        with (
            pytest.raises(DataError, match=r"out\.partial is being filled by another command"),
            resumed_folder(out, "plan a"),
        ):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "first"]
    with pytest.raises(DataError, match="exists and was not made by this command"), resumed_folder(out, "plan a"):
        pass
