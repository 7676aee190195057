"""A split opens its shards when needed, and refuses what does not belong together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nt_pretrain.data import corpus
from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.manifest import file_sha256
from nt_pretrain.data.shards import index_path, write_shard
from nt_pretrain.data.storage.store import Folder
from nt_pretrain.data.tokenizer import load_tokenizer, train_tokenizer
from tests.data.conftest import Sea


def test_few_files_are_open_however_many_shards_there_are(sea: Sea, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "OPEN_SHARDS", 2)
    split = sea.split()
    count = len(split.manifest.shards)
    assert count > 3
    before = psutil.Process().num_fds()
    read = [split.text(shard, 0) for _ in range(3) for shard in range(count)]
    assert psutil.Process().num_fds() <= before + 2 * 2
    assert read[:count] == read[count : 2 * count]
    assert list(split._open) == [count - 2, count - 1]
    split.text(count - 2, 0)
    split.text(0, 0)
    assert list(split._open) == [count - 2, 0], "the one used longest ago is closed"


def test_tokens_of_another_tokenizer_are_refused(sea: Sea, tmp_path: Path) -> None:
    train_tokenizer(iter(sea.texts[:90]), tmp_path / "other.model", vocab_size=310, kind="bpe", max_bytes=1_000_000)
    with pytest.raises(DataError, match="holds tokens of another tokenizer"):
        Split.open(sea.tokens / "train", load_tokenizer(tmp_path / "other.model"))


def test_too_few_documents_for_the_lanes(sea: Sea) -> None:
    with pytest.raises(DataError, match=r"too few for 4096 lanes\. Set data\.lanes .*--document-characters"):
        order_of(sea.split(), seed=0, lanes=4096, window=8)


def test_an_index_of_another_shard_is_noticed(sea: Sea, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sea.text / "train", tmp_path / "train"))
    indices = sorted(folder.glob("*.idx.npy"))
    entries = [entry.documents for entry in sea.split().manifest.shards]
    other = next(number for number, documents in enumerate(entries) if documents != entries[0])
    shutil.copy(indices[other], indices[0])
    with pytest.raises(BadInput, match="is not what the manifest lists") as error:
        Split.open(folder, load_tokenizer(sea.tokenizer)).text(0, 0)
    assert error.value.kind == "damaged index"
    assert not error.value.of_document


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"body": ""}', b'{"text": 5}', b"\xff"])
def test_a_row_without_text_is_named(sea: Sea, tmp_path: Path, content: bytes) -> None:
    write_shard(tmp_path / "a.tar", [b'{"text": "one"}', content], "jsonl")
    manifest = sea.split().manifest
    entry = replace(manifest.shards[0], name="a.tar", documents=2, bytes=(tmp_path / "a.tar").stat().st_size)
    entry = replace(entry, index_sha256=file_sha256(index_path(tmp_path / "a.tar")))
    split = Split(Folder(tmp_path), replace(manifest, shards=[entry]), None)
    assert split.text(0, 0) == "one"
    with pytest.raises(BadInput, match=r"a\.tar: document 1 is no row with a text") as error:
        split.text(0, 1)
    assert error.value.of_document
