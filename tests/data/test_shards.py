"""Shards are ordinary WebDataset tars; every document is read by itself and checked."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.data import shards
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.shards import Shard, index_path, write_shard

ROWS = [json.dumps({"text": f"row {number} " + "x" * (number % 70)}).encode() + b"\n" for number in range(600)]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "text-train-000000.tar"
    write_shard(path, ROWS, "jsonl")
    return path


def test_every_document_can_be_read_alone(shard: Path) -> None:
    opened = Shard.open(shard)
    assert len(opened) == 600
    for number in (599, 0, 255, 256, 511, 512):
        assert opened.document(number) == ROWS[number]
    opened.close()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=30), st.integers(1, 9))
def test_any_bytes_in_members_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, rows: list[bytes], member: int
) -> None:
    monkeypatch.setattr(shards, "DOCUMENTS_PER_MEMBER", member)
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    write_shard(path, rows, "tokens")
    opened = Shard.open(path)
    assert [opened.document(number) for number in range(len(opened))] == rows
    opened.close()


def test_webdataset_reads_it(shard: Path) -> None:
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002"]
    assert b"".join(sample["jsonl"] for sample in samples) == b"".join(ROWS)


def test_the_same_documents_give_the_same_bytes(shard: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    write_shard(again, ROWS, "jsonl")
    assert again.read_bytes() == shard.read_bytes()
    assert index_path(again).read_bytes() == index_path(shard).read_bytes()
    with tarfile.open(again) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in tar} == {
            (0, 0, 0, "", "", 0o644)
        }


@pytest.mark.parametrize("number", [0, 255, 256, 599])
def test_a_flipped_bit_is_found_and_named(shard: Path, number: int) -> None:
    entry = np.load(index_path(shard))[number]
    content = bytearray(shard.read_bytes())
    content[int(entry["offset"]) + 3] ^= 1
    shard.write_bytes(content)
    opened = Shard.open(shard)
    where = f"document {number} \\(bytes {entry['offset']} to {entry['offset'] + entry['size']}\\) is damaged"
    with pytest.raises(DataError, match=rf"text-train-000000\.tar: {where}: its checksum is not that of the index"):
        opened.document(number)
    assert opened.document(100) == ROWS[100], "the others are still good"


def test_a_shard_that_was_cut_off_says_so(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"document 599 .* is damaged: the file ends before it"):
        Shard.open(shard).document(599)


def test_missing_and_wrong_files_are_named(shard: Path) -> None:
    np.save(index_path(shard), np.zeros(4))
    with pytest.raises(DataError, match="no index of documents"):
        Shard.open(shard)
    index_path(shard).unlink()
    with pytest.raises(DataError, match=r"cannot be opened: .*idx\.npy.*; check it with launch/prepare.py verify"):
        Shard.open(shard)
