"""A corpus is a function of its documents, and appears whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.preparation import read_text, runs, write_text
from nt_pretrain.data.preparation.documents import Problems
from nt_pretrain.data.preparation.prepare_text import Recipe, check_same, prepare_text
from nt_pretrain.data.preparation.verify import verify
from nt_pretrain.data.storage.store import Folder
from nt_pretrain.data.tokenizer import load_tokenizer
from tests.data.conftest import Sea, texts, write_rows

RECIPE = Recipe("t", 0.2, 3_000)


def make(inputs: list[Path], out: Path, recipe: Recipe = RECIPE) -> Problems:
    return prepare_text(inputs, out, recipe, lambda *_: None)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents(out: Path, split: str) -> list[str]:
    opened = Split(Folder(out / split), read_manifest(out / split), None)
    return [opened.text(n, d) for n, shard in enumerate(opened.manifest.shards) for d in range(shard.documents)]


def test_every_document_is_in_one_split_in_the_order_of_hashes(tmp_path: Path) -> None:
    written = texts(100)
    make([write_rows(tmp_path / "rows.jsonl", written)], tmp_path / "out")
    train, validation = documents(tmp_path / "out", "train"), documents(tmp_path / "out", "validation")
    assert sorted(train + validation) == sorted(written)
    assert 5 < len(validation) < 40
    for found in (train, validation):
        assert found == sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest()[8:])
    heads = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64 for text in validation]
    assert max(heads) < 0.2


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", texts(60))
    for name in ("a", "b"):
        make([rows], tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert len(read_manifest(tmp_path / "a" / "train").shards) > 1


def test_the_shards_do_not_depend_on_how_the_input_is_cut_or_sorted_or_on_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = texts(60)
    make([write_rows(tmp_path / "rows.jsonl", written)], tmp_path / "a")
    (tmp_path / "parts").mkdir()
    backwards = [json.dumps({"text": text}).encode() for text in reversed(written)]
    (tmp_path / "parts" / "c4-train.00000-of-00002.json.gz").write_bytes(gzip.compress(b"\n".join(backwards[:20])))
    (tmp_path / "parts" / "c4-train.00001-of-00002.json.gz").write_bytes(gzip.compress(b"\n".join(backwards[20:])))
    monkeypatch.setattr(runs, "RUN_BYTES", 500)
    monkeypatch.setattr(read_text, "GROUP_BYTES", 1)
    make([tmp_path / "parts"], tmp_path / "b")
    for split in ("train", "validation"):
        before, after = (read_manifest(tmp_path / out / split) for out in ("a", "b"))
        assert before.shards == after.shards
        assert before.fingerprint == after.fingerprint


def test_copies_of_a_text_stand_on_one_side(tmp_path: Path) -> None:
    make([write_rows(tmp_path / "rows.jsonl", texts(40) * 3)], tmp_path / "out")
    train, validation = set(documents(tmp_path / "out", "train")), set(documents(tmp_path / "out", "validation"))
    assert not train & validation


def test_the_manifest_says_what_the_split_holds(tmp_path: Path) -> None:
    folder = tmp_path / "my-texts"
    folder.mkdir()
    write_rows(folder / "rows.jsonl", [*texts(30), "", " "])
    (folder / "a.txt").write_bytes(b"caf\xe9 and more words")
    problems = make([folder], tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "train")
    both = sum(read_manifest(tmp_path / "out" / split).documents for split in ("train", "validation"))
    assert (manifest.name, manifest.split, manifest.format, both) == ("t", "train", "text", 31)
    assert manifest.problems == problems.counts
    assert sorted(problems.counts.values()) == [1, 2]
    (source,) = manifest.sources
    hashes = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in ("a.txt", "rows.jsonl")
    ]
    assert (source.name, source.files) == ("my-texts", 2)
    assert source.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert str(tmp_path) not in manifest.to_text(), "no path of this machine"
    assert sum(shard.bytes for shard in manifest.shards) == sum(
        path.stat().st_size for path in (tmp_path / "out" / "train").glob("*.tar")
    )


def test_url_and_timestamp_stand_in_the_shard(tmp_path: Path) -> None:
    rows = [{"text": text, "timestamp": "2019", "url": f"https://example.org/{text[:10]}"} for text in texts(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make([tmp_path / "rows.jsonl"], tmp_path / "out")
    opened = Split(Folder(tmp_path / "out" / "train"), read_manifest(tmp_path / "out" / "train"), None)
    assert json.loads(opened._shard(0).document(0)) in rows


@settings(deadline=None)
@given(st.text(), st.dictionaries(st.sampled_from(["timestamp", "url"]), st.text()))
def test_rows_are_written_as_json_writes_them(text: str, meta: dict[str, str]) -> None:
    expected = json.dumps({"text": text, **meta}, ensure_ascii=False).encode() + b"\n"
    assert read_text.row_of(text.encode(), meta) == expected


def test_every_letter_below_256_is_written_as_json_writes_it() -> None:
    for letter in map(chr, range(256)):
        expected = json.dumps({"text": f"a{letter}b"}, ensure_ascii=False).encode() + b"\n"
        assert read_text.row_of(f"a{letter}b".encode(), {}) == expected


def test_token_shards_hold_what_encoding_gives(sea: Sea) -> None:
    tokenizer = load_tokenizer(sea.tokenizer)
    text, tokens = sea.split(), Split.open(sea.tokens / "train", tokenizer)
    assert (tokens.manifest.format, tokens.manifest.dtype) == ("tokens", "<u2")
    places = [[(n, d) for n, s in enumerate(x.manifest.shards) for d in range(s.documents)] for x in (text, tokens)]
    assert len(places[0]) == len(places[1]) > 100
    for ours, theirs in zip(*places, strict=True):
        assert text.tokens(*ours).tolist() == tokens.tokens(*theirs).tolist()


@pytest.mark.parametrize("stage", ["reading", "planning", "writing"])
def test_after_an_interruption_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(read_text, "GROUP_BYTES", 1)
    inputs = [write_rows(tmp_path / f"{n}.jsonl", texts(300, n)) for n in range(3)]
    make(inputs, tmp_path / "whole")

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(stage) and 3 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_text(inputs, tmp_path / "out", RECIPE, interrupt)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    seen: list[tuple[int, int]] = []
    prepare_text(inputs, tmp_path / "out", RECIPE, lambda _, done, total: seen.append((done, total)))
    assert stage == "reading" or seen[1][0] == seen[1][1], "all was read before"
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_what_was_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_text, "GROUP_BYTES", 1)
    inputs = [write_rows(tmp_path / f"{n}.jsonl", texts(200, n)) for n in range(4)]
    written: list[str] = []
    real = write_text.write_shard

    def counted(path: Path, *rest: object) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(write_text, "write_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        make(inputs, tmp_path / "out")
    inputs[0].rename(tmp_path / "hidden")
    with pytest.raises(DataError, match="no such file"):
        make(inputs, tmp_path / "out")
    (tmp_path / "hidden").rename(inputs[0])
    half = (tmp_path / "out.partial" / "train" / written[-1]).read_bytes()
    (tmp_path / "out.partial" / "train" / written[-1]).write_bytes(half[:100])  # as a failing disk would leave it
    monkeypatch.setattr(read_text, "read_documents", None)  # nothing is read again
    monkeypatch.setattr(write_text, "write_shard", lambda path, *rest: (written.append(path.name), real(path, *rest)))
    make(inputs, tmp_path / "out")
    names = [
        shard.name for split in ("train", "validation") for shard in read_manifest(tmp_path / "out" / split).shards
    ]
    assert sorted(written) == sorted([*names, written[4]]), "only the damaged one was written twice"
    assert verify(tmp_path / "out", lambda *_: None) == []


def test_a_damaged_file_is_replaced_and_the_others_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_text, "GROUP_BYTES", 1)
    inputs = [write_rows(tmp_path / f"{n}.jsonl", texts(50, n)) for n in range(2)]
    packed = tmp_path / "last.jsonl.gz"
    whole = gzip.compress(write_rows(tmp_path / "last.jsonl", texts(50, 7)).read_bytes())
    packed.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"last\.jsonl\.gz: cannot be read"):
        make([*inputs, packed], tmp_path / "out")
    packed.write_bytes(whole)
    read: list[str] = []
    real = read_text.read_documents
    monkeypatch.setattr(
        read_text, "read_documents", lambda path, *a, **options: (read.append(path.name), real(path, *a, **options))[1]
    )
    make([*inputs, packed], tmp_path / "out")
    assert read == ["last.jsonl.gz"]
    assert len(documents(tmp_path / "out", "train") + documents(tmp_path / "out", "validation")) == 150


def test_other_options_do_not_take_up_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", texts(60))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write_text, "write_shard", _interrupt)
        make([rows], tmp_path / "out")
    for other in (replace(RECIPE, shard_bytes=9_000), replace(RECIPE, longest=50), replace(RECIPE, text_field="body")):
        with pytest.raises(DataError, match=r"out\.partial was begun from other inputs or with other options"):
            make([rows], tmp_path / "out", other)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("tokens", [False, True])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, sea: Sea, tokens: bool) -> None:
    (tmp_path / "rows").mkdir()
    for number in range(3):
        # Alone in their groups, so that there is work for more than one process.
        write_rows(tmp_path / "rows" / f"{number}.jsonl", [*texts(400, number), "", "same text"])
        (tmp_path / "rows" / f"{number}.jsonl").open("ab").write(b"no json\n" + b" " * 4_000_000)
    recipe = replace(RECIPE, shard_bytes=20_000, tokenizer=load_tokenizer(sea.tokenizer) if tokens else None)
    found = [
        prepare_text([tmp_path / "rows"], tmp_path / f"{workers}", recipe, lambda *_: None, workers)
        for workers in (1, 3)
    ]
    assert tree(tmp_path / "1") == tree(tmp_path / "3")
    assert found[0] == found[1]
    assert found[0].counts["empty documents left out"] == 3
    assert found[0].lines()[0].endswith("rows/0.jsonl:401)"), "the first in the order of the input"


def test_copies_of_a_text_keep_the_order_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUN_BYTES", 700)
    monkeypatch.setattr(read_text, "GROUP_BYTES", 1)
    inputs = []
    for number in range(3):
        lines = [{"text": "same", "url": f"{number}-{n:02d}"} for n in range(10)]
        lines += [{"text": text} for text in texts(30, number)]
        inputs.append(tmp_path / f"{number}.jsonl")
        inputs[-1].write_text("\n".join(map(json.dumps, lines)))
    make(inputs, tmp_path / "out")
    urls = []
    for split in ("train", "validation"):
        opened = Split(Folder(tmp_path / "out" / split), read_manifest(tmp_path / "out" / split), None)
        for number, shard in enumerate(opened.manifest.shards):
            rows = [json.loads(opened._shard(number).document(d)) for d in range(shard.documents)]
            urls += [row["url"] for row in rows if "url" in row]
    assert len(urls) == 30 and urls == sorted(urls)


def test_raw_text_in_the_output_folder_is_safe(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    rows = write_rows(tmp_path / "data" / "train" / "rows.jsonl", texts(40))
    with pytest.raises(DataError, match="exists and was not made by this command"):
        make([rows], tmp_path / "data")
    assert rows.exists()


def test_too_little_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document")
    with pytest.raises(DataError, match=r"split is empty: 1 documents are too few for --validation-share 0\.2"):
        make([tmp_path / "a.txt"], tmp_path / "out")
    (tmp_path / "b.jsonl").write_text('[\n {"text": "a pretty-printed array"},\n')
    with pytest.raises(DataError, match=r"(?s)no documents in .*b\.jsonl\n2 rows left out.*\(first: .*b\.jsonl:1\)"):
        make([tmp_path / "b.jsonl"], tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_folder_made_otherwise_is_not_taken_for_this_one(tmp_path: Path, sea: Sea) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", texts(40))
    out = tmp_path / "out"
    make([rows], out)
    check_same([rows], out, RECIPE)
    with pytest.raises(DataError, match=r"(?s)was prepared differently:\n  split: .* below 0\.2 .*-> .* below 0\.3 "):
        check_same([rows], out, Recipe("t", 0.3, 3_000))
    with pytest.raises(DataError, match=r"--tokenizer \(sha256\): none -> [0-9a-f]{64}"):
        check_same([rows], out, Recipe("t", 0.2, 3_000, tokenizer=load_tokenizer(sea.tokenizer)))
    write_rows(rows, texts(41))
    with pytest.raises(DataError, match=r"inputs: rows\.jsonl \([\d,]+ bytes\) -> rows\.jsonl \([\d,]+ bytes\)"):
        check_same([rows], out, RECIPE)
    rows.unlink()
    check_same([rows], out, RECIPE)  # raw text may be deleted once it is prepared
