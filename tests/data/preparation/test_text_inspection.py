"""What inspect says of prepared text and tokens is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation import text_inspection
from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
from nt_pretrain.data.preparation.text_inspection import inspect_text
from nt_pretrain.data.tokenizer import load_tokenizer
from tests.data.conftest import Sea, texts, write_rows


def every_text(split: Split) -> list[str]:
    return [split.text(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]


def test_counts_of_text(sea: Sea) -> None:
    tokenizer = load_tokenizer(sea.tokenizer)
    written = every_text(sea.split())
    found = inspect_text(sea.text / "train", tokenizer)
    assert found.sampled == len(written) == len(found.sizes)
    assert found.characters == sum(map(len, written))
    assert found.tokens == sum(len(tokenizer.encode(text)) for text in written)
    assert found.lengths.tolist() == [len(text) for text in written]
    assert found.first == [" ".join(text.split()) for text in written[:3]]
    assert f"{found.characters:,} characters" in found.lines() and f"{found.tokens:,} tokens" in found.lines()
    assert inspect_text(sea.text / "train", None).tokens is None


def test_counts_of_tokens(sea: Sea) -> None:
    tokenizer = load_tokenizer(sea.tokenizer)
    text, tokens = inspect_text(sea.text / "train", tokenizer), inspect_text(sea.tokens / "train", None)
    assert tokens.tokens == text.tokens == int(tokens.lengths.sum())
    assert tokens.characters is None
    assert f"{text.tokens:,} tokens" in tokens.lines()
    assert inspect_text(sea.tokens / "train", tokenizer).first == text.first


def test_of_many_documents_some_are_read_and_the_rest_is_estimated(sea: Sea, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inspect_text(sea.text / "train", None)
    monkeypatch.setattr(text_inspection, "SAMPLE", 40)
    found = inspect_text(sea.text / "train", None)
    assert found.sampled == 40 and len(found.sizes) == len(whole.sizes)
    (line,) = [line for line in found.lines() if line.startswith("about ")]
    assert line.endswith("characters (of 40 evenly spread)")
    assert whole.characters is not None
    estimate = int(line.split()[1].replace(",", ""))
    assert 0.6 * whole.characters < estimate < 1.6 * whole.characters


def test_a_document_does_not_steer_the_terminal(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [f"\x1b[2J\x07 red \u202e {text}" for text in texts(30)])
    prepare_text([rows], tmp_path / "out", Recipe("t", 0.2, 3_000), lambda *_: None)
    lines = "\n".join(inspect_text(tmp_path / "out" / "train", None).lines())
    assert all(letter.isprintable() or letter == "\n" for letter in lines)


def test_problems_stand_in_the_inspection(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*texts(30), "", ""])
    prepare_text([rows], tmp_path / "out", Recipe("t", 0.2, 3_000), lambda *_: None)
    assert "2 empty documents left out" in inspect_text(tmp_path / "out" / "train", None).lines()


def test_tokens_of_another_tokenizer_are_refused(sea: Sea, tmp_path: Path) -> None:
    other = load_tokenizer(sea.tokenizer)
    with pytest.raises(DataError, match="holds tokens of another tokenizer"):
        inspect_text(sea.tokens / "train", type(other)(other.processor, "0" * 64, other.end))
