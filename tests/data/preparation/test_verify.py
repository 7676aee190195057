"""Verify finds any byte that is not what was written, and names what it hits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.verify import verify
from nt_pretrain.data.shards import index_path
from tests.data.conftest import Sea


@pytest.fixture
def copy(sea: Sea, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sea.text, tmp_path / "copy"))


def check(folder: Path) -> list[str]:
    return verify(folder, lambda *_: None)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_sound_corpus_has_nothing_wrong(sea: Sea) -> None:
    assert check(sea.text) == check(sea.tokens) == []


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_bit_names_shard_and_document(copy: Path, split: str) -> None:
    shard = sorted((copy / split).glob("*.tar"))[-1]
    offset = int(np.load(index_path(shard))[1]["offset"])
    flip(shard, offset + 5)
    assert check(copy) == [
        f"{shard}: is not what the manifest lists (sha256)",
        f"  document 1 at byte {offset} is damaged",
    ]


def test_a_flipped_bit_between_documents_is_found_too(copy: Path) -> None:
    shard = next((copy / "train").glob("*.tar"))
    flip(shard, 3)
    assert check(copy) == [f"{shard}: is not what the manifest lists (sha256)"]


def test_a_shard_that_was_cut_off_is_counted(copy: Path) -> None:
    shard = next((copy / "train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:700])
    found = check(copy)
    assert len(found) == 5
    assert found[-1].startswith("  and ")


def test_missing_files_and_changed_indices_are_named(copy: Path) -> None:
    first, second = sorted((copy / "train").glob("*.tar"))[:2]
    flip(index_path(first), 200)
    second.unlink()
    assert check(copy) == [
        f"{index_path(first)}: is not what the manifest lists (sha256)",
        f"{second}: is missing",
    ]


def test_a_corpus_without_a_manifest_is_none(copy: Path) -> None:
    (copy / "validation" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"validation is not prepared: .*manifest\.json is missing"):
        check(copy)
