"""Tokens spelled one at a time: the same characters as all at once, blanks and characters of several bytes too."""

from __future__ import annotations

import pytest

from nt_pretrain.data.spelling import Speller, puts_blank_before
from nt_pretrain.data.tokenizer import BEGIN, END, Tokenizer, load_tokenizer, train_tokenizer
from tests.conftest import documents

TEXTS = [
    "the king went up to the city.",
    "the king",
    "  two blanks,  and two more  ",
    "naïve Ünïcödé: 漢字 and 🦊🦊, é",
    "\tlines\nand tabs\r\n",
    "▁",
]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    out = tmp_path_factory.mktemp("tokenizer") / "text.model"
    train_tokenizer(iter(documents(100, 0)), out, vocab_size=340, kind=request.param, max_bytes=1 << 20)
    return load_tokenizer(out)


def spelled(tokenizer: Tokenizer, tokens: list[int], *, at_start: bool) -> list[str]:
    speller = Speller(tokenizer, at_start=at_start)
    return [*(speller.spell(token) for token in tokens), speller.rest()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_are_the_whole(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.processor.encode(text)
    parts = spelled(tokenizer, tokens, at_start=True)
    assert "".join(parts) == tokenizer.processor.decode(tokens)
    assert not any("\ufffd" in part for part in parts), "half a character was shown"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_goes_on(tokenizer: Tokenizer, text: str) -> None:
    """Wherever a text is cut into prompt and continuation, both together are the text."""
    tokens = tokenizer.processor.encode(text)
    whole = tokenizer.processor.decode(tokens)
    for cut in range(1, len(tokens)):
        prompt = tokenizer.processor.decode(tokens[:cut])
        if "\ufffd" not in prompt:
            assert prompt + "".join(spelled(tokenizer, tokens[cut:], at_start=False)) == whole


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.processor.piece_to_id(f"<0x{byte:02X}>") for byte in "🦊".encode()]
    assert spelled(tokenizer, tokens, at_start=False) == ["", "", "", "🦊", ""]
    king = tokenizer.processor.piece_to_id("▁the")
    assert spelled(tokenizer, [*tokens[:2], king], at_start=False) == ["", "", "\ufffd the", ""]
    assert spelled(tokenizer, tokens[:2], at_start=False) == ["", "", "\ufffd"]


def test_control_pieces_spell_nothing(tokenizer: Tokenizer) -> None:
    assert puts_blank_before(tokenizer)
    king = tokenizer.processor.piece_to_id("▁the")
    assert spelled(tokenizer, [END, BEGIN, king], at_start=True) == ["", "", "the", ""]
