"""Shards are ordinary WebDataset tars; every document is read by itself and checked."""

from __future__ import annotations

import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.data import shards
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.labelled_shards import Sample, labels_of, write_labelled_shard
from nt_pretrain.data.manifest import file_sha256
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


def kind_of(error: pytest.ExceptionInfo[BadInput]) -> str:
    return error.value.kind


def write_index(shard: Path, number: int, **values: int) -> None:
    """Change a row of the index."""
    index = np.load(index_path(shard))
    for name, value in values.items():
        index[number][name] = value
    np.save(index_path(shard), index)


def test_a_shard_that_is_as_listed_opens(shard: Path) -> None:
    opened = Shard.open(shard, bytes=shard.stat().st_size, index_sha256=file_sha256(index_path(shard)))
    assert opened.document(300) == ROWS[300]
    assert opened.index["size"].tolist() == list(map(len, ROWS))
    opened.close()


def test_another_size_than_the_manifests_is_refused_at_once(shard: Path) -> None:
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-512])
    words = rf"text-train-000000\.tar: has {size - 512:,} bytes, the manifest says {size:,}"
    with pytest.raises(BadInput, match=words) as error:
        Shard.open(shard, bytes=size)
    assert kind_of(error) == "changed shard"


def test_another_index_than_the_manifests_is_refused(shard: Path) -> None:
    listed = file_sha256(index_path(shard))
    write_index(shard, 17, crc32=5)
    with pytest.raises(BadInput, match=r"the index is not what the manifest lists \(sha256\)") as error:
        Shard.open(shard, index_sha256=listed)
    assert kind_of(error) == "damaged index"


@pytest.mark.parametrize("values", [{"offset": 2**64 - 1}, {"size": 2**32 - 1}, {"offset": 2**63, "size": 2**32 - 1}])
def test_an_index_that_points_outside_its_shard_asks_for_no_memory(shard: Path, values: dict[str, int]) -> None:
    write_index(shard, 599, **values)
    tracemalloc.start()
    with pytest.raises(BadInput, match=r"the index puts document 599 at bytes") as error:
        Shard.open(shard, bytes=shard.stat().st_size)
    assert kind_of(error) == "damaged index"
    opened = Shard.open(shard)
    with pytest.raises(BadInput, match="the file ends before it") as error:
        opened.document(599)
    assert kind_of(error) == "truncated shard"
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert opened.document(0) == ROWS[0]


def test_an_index_of_a_thousand_million_rows_is_not_read(shard: Path) -> None:
    content = index_path(shard).read_bytes()
    header = content[: len(content) - 600 * shards.INDEX.itemsize]
    with index_path(shard).open("wb") as file:
        file.write(header.replace(b"(600,), }        ", b"(1000000000,), } "))
        file.truncate(len(header) + 10**9 * shards.INDEX.itemsize)  # a hole: no space on disk
    tracemalloc.start()
    with pytest.raises(BadInput, match="no index of documents: 16,000,000,192 bytes for 1,000,000,000 rows") as error:
        Shard.open(shard)
    assert kind_of(error) == "damaged index"
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_index_makes_it_fail_in_another_way(shard: Path, data: st.DataObject) -> None:
    """Bytes of the header overwritten, or all of it: it opens or says that the index is damaged."""
    good = index_path(shard).with_suffix(".good")
    content = good.read_bytes() if good.exists() else index_path(shard).read_bytes()
    good.write_bytes(content)
    place = data.draw(st.integers(0, 130))
    bad = data.draw(st.one_of(st.binary(max_size=40), st.text("()[]{},'<u0123456789: ", max_size=60).map(str.encode)))
    index_path(shard).write_bytes(content[:place] + bad + content[place + len(bad) * data.draw(st.booleans()) :])
    try:
        Shard.open(shard).close()
    except BadInput as error:
        assert error.kind == "damaged index"


def test_a_shard_cut_off_while_it_is_open_says_so(shard: Path) -> None:
    opened = Shard.open(shard, bytes=shard.stat().st_size)
    os.truncate(shard, int(opened.index[300]["offset"]) + 5)
    with pytest.raises(BadInput, match=r"document 300 .* is damaged: the file ends before it") as error:
        opened.document(300)
    assert kind_of(error) == "truncated shard"
    assert opened.document(299) == ROWS[299]
    opened.close()


def test_what_the_system_refuses_to_read_is_named_after_three_attempts(tmp_path: Path) -> None:
    """A folder in the place of a shard can be opened and not read."""
    write_shard(tmp_path / "a.tar", [b"abc"], "jsonl")
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar").mkdir()
    opened = Shard.open(tmp_path / "a.tar")
    with pytest.raises(BadInput, match=r"document 0 .* cannot be read: .*directory.* \(3 attempts\)") as error:
        opened.document(0)
    assert kind_of(error) == "unreadable"
    opened.close()


def test_kinds_of_what_is_missing_and_damaged(shard: Path) -> None:
    entry = np.load(index_path(shard))[0]
    content = bytearray(shard.read_bytes())
    content[int(entry["offset"])] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BadInput) as error:
        Shard.open(shard).document(0)
    assert kind_of(error) == "damaged document"
    for file in (index_path(shard), shard):
        file.unlink()
        with pytest.raises(BadInput, match=r"cannot be opened: .*No such file") as error:
            Shard.open(shard)
        assert kind_of(error) == "missing shard"


def test_a_shard_that_cannot_be_opened_leaves_no_file_open(shard: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(BadInput):
            Shard.open(shard, index_sha256="0" * 64)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_label_of_a_picture_does_not_shift_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    pictures = [bytes([n]) * (n + 1) for n in range(40)]
    write_labelled_shard(path, (Sample(f"{n:04d}", each, "jpg", 7 * n) for n, each in enumerate(pictures)))
    opened = Shard.open(path, bytes=path.stat().st_size, index_sha256=file_sha256(index_path(path)))
    assert [opened.document(n) for n in range(40)] == pictures
    assert labels_of(opened).tolist() == [7 * n for n in range(40)]
    opened.close()
