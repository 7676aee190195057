"""The manifest comes back as it was written, and a changed one is not believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import Manifest, ShardEntry, Source, read_manifest

SHARD = ShardEntry("a-train-000000.tar", 10, 2048, "ab" * 32, "cd" * 32)
MANIFEST = Manifest(1, "a", "train", "text", [SHARD], [Source("in", 1, 5, "ef" * 32)], "rule", "tool")


def written(folder: Path, text: str) -> Path:
    (folder / "manifest.json").write_text(text)
    return folder


def test_it_comes_back(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, MANIFEST.to_text())) == MANIFEST
    facts = json.loads(MANIFEST.to_text())
    assert (facts["documents"], facts["bytes"], facts["fingerprint"]) == (10, 2048, MANIFEST.fingerprint)


def test_the_fingerprint_is_that_of_the_shards() -> None:
    assert replace(MANIFEST, tool="newer", sources=[]).fingerprint == MANIFEST.fingerprint
    for changed in (replace(SHARD, sha256="00" * 32), replace(SHARD, index_sha256="00" * 32), replace(SHARD, name="b")):
        assert replace(MANIFEST, shards=[changed]).fingerprint != MANIFEST.fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a manifest of this version"),
        ("[]", "is not a manifest of this version"),
        ('{"version": 1}', "is not a manifest of this version"),
        (MANIFEST.to_text().replace("abab", "0000"), "was changed after it was written"),
        (replace(MANIFEST, shards=[]).to_text(), "holds no documents"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_manifest(written(tmp_path, text))


def test_a_folder_without_one_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not prepared: .* make it with launch/prepare.py text"):
        read_manifest(tmp_path)
