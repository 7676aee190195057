"""What a prepared split of text or tokens holds, for people: sizes, lengths, the first documents, shards, problems."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nt_pretrain.data.corpus import text_of
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import Manifest, read_manifest
from nt_pretrain.data.preparation.histogram import histogram
from nt_pretrain.data.shards import Shard
from nt_pretrain.data.tokenizer import Tokenizer

SAMPLE = 2_000
"""Documents that are read; of the others only the sizes, which stand in the indices."""
SHOWN, SHOWN_CHARACTERS = 3, 300
SHARDS_SHOWN = 8


@dataclass(frozen=True)
class TextInspection:
    """Of one split.

    Attributes:
        sizes: bytes of each document as it is stored.
        sampled: documents read, evenly spread over the split.
        sampled_bytes: their bytes as stored.
        characters: of the documents read; None for tokens without their tokenizer.
        tokens: of the documents read, the one that closes each included; None without a tokenizer.
        lengths: of each document in tokens if all are known, else of those read, in characters.
        first: the first documents as text, or as numbers where there is no tokenizer.
    """

    manifest: Manifest
    sizes: np.ndarray
    sampled: int
    sampled_bytes: int
    characters: int | None
    tokens: int | None
    lengths: np.ndarray
    first: list[str]

    def lines(self) -> list[str]:
        """The inspection in words."""
        manifest, stored = self.manifest, int(self.sizes.sum())
        unit = "tokens" if manifest.format == "tokens" else "characters"
        found = [f"{manifest.documents:,} documents, {stored:,} bytes"]
        if manifest.format == "tokens":
            found.append(f"{stored // np.dtype(manifest.dtype).itemsize:,} tokens")
        for what, count in (("characters", self.characters), ("tokens", self.tokens)):
            if count is not None and what not in found[-1]:
                found.append(self._estimate(what, count, stored))
        found += [
            f"{unit} of a document{self._of_sampled() if unit == 'characters' else ''}:",
            *histogram(self.lengths),
        ]
        found += ["first documents:"]
        for document in self.first:
            found += textwrap.wrap(document, 110, initial_indent="  - ", subsequent_indent="    ")
        found += ["shards:", *self._shards()]
        found += [f"{count:,} {kind}" for kind, count in manifest.problems.items()]
        return found

    def _of_sampled(self) -> str:
        return "" if self.sampled == self.manifest.documents else f" (of {self.sampled:,} evenly spread)"

    def _estimate(self, what: str, count: int, stored: int) -> str:
        if self.sampled == self.manifest.documents:
            return f"{count:,} {what}"
        return f"about {count * stored // max(1, self.sampled_bytes):,} {what}{self._of_sampled()}"

    def _shards(self) -> list[str]:
        shards = self.manifest.shards
        most, total = max(each.bytes for each in shards), sum(each.bytes for each in shards)
        found = [
            f"  {each.name}  {each.documents:>11,} documents  {each.bytes:>15,} bytes  {each.bytes / total:>6.1%}  "
            f"{'#' * -(-each.bytes * 20 // most)}"
            for each in shards[:SHARDS_SHOWN]
        ]
        if len(shards) > SHARDS_SHOWN:
            least = min(each.bytes for each in shards)
            found.append(f"  and {len(shards) - SHARDS_SHOWN:,} more; of all, {least:,} to {most:,} bytes")
        return found


def inspect_text(folder: Path, tokenizer: Tokenizer | None) -> TextInspection:
    """Read the indices of a split and some of its documents.

    Raises:
        DataError: it is not there, is damaged, holds pictures, or tokens of another tokenizer.
    """
    manifest = read_manifest(folder)
    if manifest.kind != "text":
        raise DataError(f"{folder} holds {manifest.kind}, not text")
    if manifest.format == "tokens" and tokenizer is not None and manifest.tokenizer != tokenizer.sha256:
        raise DataError(f"{folder} holds tokens of another tokenizer (sha256 {manifest.tokenizer[:16]}...)")
    places = np.unique(np.linspace(0, manifest.documents - 1, min(SAMPLE, manifest.documents)).astype(np.int64))
    sizes: list[np.ndarray] = []
    stored, first, characters, tokens = [], [], [], []
    before = 0
    for entry in manifest.shards:
        shard = Shard.open(folder / entry.name)
        try:
            sizes.append(np.array(shard.index["size"], dtype=np.int64))
            wanted = places[(places >= before) & (places < before + len(shard))] - before
            for number in wanted.tolist():
                content = shard.document(number)
                text, count = _read(content, manifest, tokenizer, shard.name, number)
                stored.append(len(content))
                tokens.append(count)
                characters.append(len(text))
            if before < SHOWN:
                first += _first(shard, SHOWN - before, manifest, tokenizer)
            before += len(shard)
        finally:
            shard.close()
    every = np.concatenate(sizes)
    pure = manifest.format == "tokens"
    return TextInspection(
        manifest,
        every,
        sampled=len(places),
        sampled_bytes=sum(stored),
        characters=None if pure and tokenizer is None else sum(characters),
        tokens=sum(tokens) if pure or tokenizer is not None else None,
        lengths=every // np.dtype(manifest.dtype).itemsize if pure else np.array(characters),
        first=first,
    )


def _first(shard: Shard, count: int, manifest: Manifest, tokenizer: Tokenizer | None) -> list[str]:
    found = []
    for number in range(min(count, len(shard))):
        text = _read(shard.document(number), manifest, tokenizer, shard.name, number)[0]
        short = " ".join(text[:SHOWN_CHARACTERS].split())
        # What a document holds must not steer the terminal that shows it.
        shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in short)
        found.append(shown + (" ..." if len(text) > SHOWN_CHARACTERS else ""))
    return found


def _read(content: bytes, manifest: Manifest, tokenizer: Tokenizer | None, shard: str, number: int) -> tuple[str, int]:
    """Text of a document, and its number of tokens (0 if that is not known)."""
    if manifest.format == "tokens":
        numbers = np.frombuffer(content, dtype=manifest.dtype)
        if tokenizer is None:
            return " ".join(map(str, numbers[:SHOWN_CHARACTERS].tolist())), len(numbers)
        return str(tokenizer.processor.decode(numbers[:-1].tolist())), len(numbers)
    text = text_of(content, shard, number)
    return text, 0 if tokenizer is None else len(tokenizer.encode(text))
