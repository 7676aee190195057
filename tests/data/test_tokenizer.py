"""The same text gives the same model file; any text is encoded and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.tokenizer import END, PAD, load_tokenizer, train_tokenizer
from tests.data.conftest import Sea, texts


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_text_gives_the_same_file(tmp_path: Path, kind: Literal["unigram", "bpe"]) -> None:
    for name in ("a.model", "b.model"):
        used = train_tokenizer(iter(texts(80)), tmp_path / name, vocab_size=300, kind=kind, max_bytes=5_000)
        assert 5_000 <= used < 5_500, "it stops after the line that passes max_bytes"
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert load_tokenizer(tmp_path / "a.model").size == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_documents_are_closed_by_the_end_token(sea: Sea) -> None:
    tokenizer = load_tokenizer(sea.tokenizer)
    tokens = tokenizer.encode("the sea\nand the ship")
    assert tokens.dtype == np.int32
    assert (tokens[-1], tokenizer.end, tokenizer.processor.pad_id()) == (END, END, PAD)
    assert tokenizer.encode("").tolist() == [END]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_tokens_are_those_of_sentencepiece_and_the_end(sea: Sea, text: str) -> None:
    tokenizer = load_tokenizer(sea.tokenizer)
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [*tokenizer.processor.encode(text), END]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back(sea: Sea, text: str) -> None:
    """But for U+2581, with which SentencePiece marks spaces."""
    tokenizer = load_tokenizer(sea.tokenizer)
    tokens = tokenizer.encode(text).tolist()
    assert tokenizer.processor.decode(tokens[:-1]) == text
    assert END not in tokens[:-1], "no text can end a document"
    assert tokenizer.encode("</s><pad><unk>").tolist().count(END) == 1


def test_too_many_pieces_for_the_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer of 9000 pieces from [\d,]+ bytes of text: .*<= \d+"):
        train_tokenizer(iter(texts(20)), tmp_path / "a.model", vocab_size=9000, kind="unigram", max_bytes=10_000)
    with pytest.raises(DataError, match="no tokenizer of 300 pieces from 0 bytes of text"):
        train_tokenizer(iter([]), tmp_path / "a.model", vocab_size=300, kind="bpe", max_bytes=10_000)
    with pytest.raises(DataError, match="no tokenizer of 10 pieces"):
        train_tokenizer(iter(texts(20)), tmp_path / "a.model", vocab_size=10, kind="bpe", max_bytes=10_000)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    for name in ("bad.model", "none.model"):
        with pytest.raises(DataError, match=rf"tokenizer .*{name} cannot be loaded"):
            load_tokenizer(tmp_path / name)
