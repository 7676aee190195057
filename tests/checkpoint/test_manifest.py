"""The manifest: what it refuses, and how the hashing of files is shared out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    content_problems,
    file_entry,
    listing_problems,
    read_manifest,
    shares,
    write_manifest,
)

EMPTY = Manifest(step=7, world_size=2, torch="2.13.0", identity={"model": {"layers": 2}}, files={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "step_00000007"
    path.mkdir()
    return path


def test_written_and_read(folder: Path) -> None:
    manifest = replace(EMPTY, files={"a": FileEntry(3, "00" * 32)})
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "names no format"),
        ('{"step": 7}', "names no format"),
        ('{"format": 1, "step": 7}', "its own hash does not fit"),
        ("\x00", "is not JSON"),
    ],
)
def test_what_is_no_manifest(folder: Path, content: str, message: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", "", MANIFEST])
def test_it_can_name_no_file_outside(folder: Path, name: str) -> None:
    manifest = replace(EMPTY, files={name: FileEntry(0, "")})
    assert f"{MANIFEST} names {name!r}, which is no file of this folder" in listing_problems(folder, manifest)


def test_state_and_metadata_must_be_listed(folder: Path) -> None:
    assert listing_problems(folder, EMPTY) == [
        f"state.json is missing in {MANIFEST}",
        f".metadata is missing in {MANIFEST}",
    ]


def test_a_file_that_goes_away_while_it_is_read(folder: Path) -> None:
    (folder / "a").write_bytes(b"abc")
    manifest = replace(EMPTY, files={"a": file_entry(folder / "a")})
    assert content_problems(folder, manifest, ["a"]) == []
    (folder / "a").unlink()
    assert content_problems(folder, manifest, ["a"]) == ["a cannot be read: No such file or directory"]


@pytest.mark.parametrize("world", [1, 3, 9])
def test_shares_hold_every_file_once_and_about_equal_bytes(world: int) -> None:
    sizes = [50, 50, 50, 40, 40, 10, 1]
    manifest = replace(EMPTY, files={f"f{i}": FileEntry(size, "") for i, size in enumerate(sizes)})
    parts = shares(manifest, world)
    assert sorted(name for part in parts for name in part) == sorted(manifest.files)
    loads = [sum(manifest.files[name].bytes for name in part) for part in parts]
    assert max(loads) <= sum(sizes) / world + max(sizes)
