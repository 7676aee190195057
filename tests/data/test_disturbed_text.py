"""Disturbed validation text: the same documents, every character of them counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.disturbed_text import Counted, counted_sequences, spelled_by
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.text import PADDING
from nt_pretrain.data.tokenizer import END, Tokenizer, load_tokenizer
from nt_pretrain.data.validation import validation_batches, validation_text
from nt_pretrain.eval.text_noise import with_typing_errors
from tests.data.conftest import Sea


def split_of(sea: Sea) -> Split:
    return Split.open(sea.text / "validation", load_tokenizer(sea.tokenizer))


def documents(split: Split) -> list[tuple[str, str]]:
    """Text and name of every document."""
    shards = enumerate(split.manifest.shards)
    return [(split.text(n, d), f"{shard.name}/{d}") for n, shard in shards for d in range(shard.documents)]


def targets(found: list[Counted]) -> list[int]:
    """The target tokens in their order."""
    pairs = [(each.sequence.tokens[1:], each.sequence.documents[1:]) for each in found]
    return [int(token) for tokens, numbers in pairs for token in tokens[numbers != PADDING]]


def spelled(tokenizer: Tokenizer, tokens: list[int]) -> int:
    """Characters of ASCII text that tokens spell, from the names of their pieces."""
    pieces = [tokenizer.processor.id_to_piece(token) for token in tokens if token != END]
    return sum(1 if piece.startswith("<0x") else len(piece) for piece in pieces)


def swaps(text: str, name: str) -> str:
    return with_typing_errors(text, "swap", 0.2, seed=3, sample=name)


def same(text: str, name: str) -> str:
    return text


@pytest.mark.parametrize("text", ["the sea  Ω whale 😀x", "", " a\n\nb ", "😀", "Ω\nΩ"])
def test_tokens_are_those_of_the_tokenizer_and_spell_the_text(sea: Sea, text: str) -> None:
    tokenizer = load_tokenizer(sea.tokenizer)
    tokens, counts = spelled_by(tokenizer, text)
    assert tokens.tolist() == tokenizer.encode(text)[:-1].tolist()
    assert counts.sum() == len(text) and len(counts) == len(tokens) and (counts >= 0).all()


@pytest.mark.parametrize("packing", ["pack", "truncate"])
@pytest.mark.parametrize("sequences", [1, 7, 0])
def test_undisturbed_it_is_the_validation_set(sea: Sea, packing: str, sequences: int) -> None:
    config = sea.config(data={"packing": packing}, validation={"sequences": sequences})
    found = validation_text(config)
    for world in (1, 2, 3):
        for rank in range(world):
            one = list(found.batches(config, rank=rank, world=world))
            other = list(validation_batches(config, rank=rank, world=world))
            assert len(one) == len(other)
            assert all(torch.equal(torch.stack(a), torch.stack(b)) for a, b in zip(one, other, strict=True))
    tokenizer, line = load_tokenizer(sea.tokenizer), targets([Counted(each, each.tokens) for each in found.sequences])
    # Of the blanks that the tokenizer puts before documents, only those that are targets stand in the line.
    starts = line[:-1].count(END) if packing == "pack" else 0
    assert found.characters == spelled(tokenizer, line) - starts


@pytest.mark.parametrize("sequences", [1, 5, 0])
def test_packed_it_covers_what_the_undisturbed_covers(sea: Sea, sequences: int) -> None:
    split = split_of(sea)
    clean = counted_sequences(split, packing="pack", length=24, count=sequences)
    unchanged = counted_sequences(split, packing="pack", length=24, count=sequences, disturb=same)
    assert sum(each.characters for each in unchanged) == sum(each.characters for each in clean)
    # The last piece may be cut another way where the text ends inside a word; no more than that.
    assert abs(len(targets(unchanged)) - len(targets(clean))) <= 2
    assert targets(unchanged)[:-8] == targets(clean)[: len(targets(unchanged)) - 8]
    changed = counted_sequences(split, packing="pack", length=24, count=sequences, disturb=swaps)
    assert len(targets(changed)) > len(targets(clean)), "errors cost tokens"
    # A swap keeps the number of characters; only the first token is no target, and may spell some.
    kept, lost = (sum(int(each.spelled[0]) for each in found[:1]) for found in (clean, changed))
    assert sum(each.characters for each in changed) + lost == sum(each.characters for each in clean) + kept


def test_packed_tokens_are_those_of_the_disturbed_documents(sea: Sea) -> None:
    split = split_of(sea)
    tokenizer = load_tokenizer(sea.tokenizer)
    found = counted_sequences(split, packing="pack", length=24, disturb=swaps)
    line = [token for text, name in documents(split) for token in tokenizer.encode(swaps(text, name)).tolist()]
    got = targets(found)
    clean = targets(counted_sequences(split, packing="pack", length=24))
    assert len(clean) > 24 and got[:-40] == line[1 : len(got) - 39] and len(line) - len(got) <= 40
    assert [len(each.sequence.tokens) for each in found] == [25] * len(found)
    assert all((each.sequence.documents != PADDING).all() for each in found[:-1])


def test_truncated_it_keeps_the_documents(sea: Sea) -> None:
    split = split_of(sea)
    tokenizer = load_tokenizer(sea.tokenizer)
    found = counted_sequences(split, packing="truncate", length=24, count=5, disturb=swaps)
    assert len(found) == 5
    for each, (text, name) in zip(found, documents(split), strict=False):
        whole = tokenizer.encode(swaps(text, name))
        kept = np.concatenate([whole[:24], whole[-1:]]) if len(whole) > 24 else whole
        assert each.sequence.tokens[: len(kept)].tolist() == kept.tolist()
        assert each.characters <= len(text)
        assert each.characters == len(text) or len(whole) > 24


def test_nothing_left_of_a_text_is_only_its_end(sea: Sea) -> None:
    def gone(text: str, name: str) -> str:
        return with_typing_errors(text, "drop", 1.0, seed=0, sample=name)

    found = counted_sequences(split_of(sea), packing="pack", length=24, disturb=gone)
    assert set(targets(found)) == {END} and sum(each.characters for each in found) == 0


@pytest.mark.parametrize("length", [1, 2, 3, 23, 40])
def test_every_boundary_of_sequence_and_document(sea: Sea, length: int) -> None:
    split = split_of(sea)
    for count in (1, 2, 3, 9):
        clean = counted_sequences(split, packing="pack", length=length, count=count)
        found = counted_sequences(split, packing="pack", length=length, count=count, disturb=same)
        assert sum(each.characters for each in found) == sum(each.characters for each in clean)
        assert found == [] or (found[-1].sequence.documents[1:] != PADDING).any()


def test_the_end_of_the_last_document_counts_where_it_was_a_target(sea: Sea) -> None:
    split = split_of(sea)
    tokenizer = load_tokenizer(sea.tokenizer)
    first = len(tokenizer.encode(documents(split)[0][0]))
    for count in (first - 2, first - 1):
        clean, found = (
            targets(counted_sequences(split, packing="pack", length=1, count=count, disturb=disturb))
            for disturb in (None, same)
        )
        assert (clean[-1] == END) == (count == first - 1)
        assert found == clean


def test_several_sources_have_their_shares(sea: Sea) -> None:
    config = sea.config(
        data={"path": "", "sources": {"a": str(sea.text), "b": str(sea.text)}, "weights": {"a": 3, "b": 1}}
    )
    text = validation_text(config)
    expected = torch.cat([torch.stack(batch) for batch in validation_batches(config, rank=0, world=1)], dim=1)
    found = torch.cat([torch.stack(batch) for batch in text.batches(config, rank=0, world=1)], dim=1)
    assert torch.equal(found, expected) and len(text.sequences) == 12
    alone = [validation_text(sea.config(validation={"sequences": count})).characters for count in (9, 3)]
    assert text.characters == sum(alone)
    assert len(validation_text(config, disturb=swaps).sequences) > 12


def test_every_rank_has_its_part(sea: Sea) -> None:
    def rows(config: Config, world: int) -> torch.Tensor:
        text = validation_text(config, disturb=swaps)
        ranks = [list(text.batches(config, rank=rank, world=world)) for rank in range(world)]
        whole = torch.cat([torch.stack(batch) for same in zip(*ranks, strict=True) for batch in same], dim=1)
        return whole[:, (whole[1, :, 1:] != PADDING).any(dim=1)]

    expected = rows(sea.config(), 1)
    for world, size in ((2, 2), (3, 1), (2, 7)):
        assert torch.equal(rows(sea.config(validation={"micro_batch": size}), world), expected)


def test_tokens_cannot_be_disturbed(sea: Sea) -> None:
    config = sea.config(tokens=True)
    assert validation_text(config).characters == 0, "nobody knows"
    assert (
        validation_text(config).sequences[0].tokens.tolist()
        == validation_text(sea.config()).sequences[0].tokens.tolist()
    )
    with pytest.raises(DataError, match=r"holds tokens, and characters can be disturbed .* prepared as text"):
        validation_text(config, disturb=swaps)


def test_too_little_text_says_so(sea: Sea) -> None:
    with pytest.raises(DataError, match="less than one sequence of 100000 tokens"):
        validation_text(sea.config(data={"sequence_length": 100_000}))
