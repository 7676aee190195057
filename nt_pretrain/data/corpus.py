"""A prepared split, opened for reading: any document as text, tokens, picture or row, in the order of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.manifest import Manifest, ShardEntry
from nt_pretrain.data.order import Order
from nt_pretrain.data.rows import decoded
from nt_pretrain.data.shards import Shard
from nt_pretrain.data.storage.store import Folder, Store
from nt_pretrain.data.text import LOST
from nt_pretrain.data.tokenizer import Tokenizer, token_dtype

OPEN_SHARDS = 256
"""Shards of all sources kept open at once by a process; each costs a file descriptor (commonly 1,024 are allowed)."""
INDEX_BYTES = 256_000_000
"""Of the indices of open shards in memory: 16 bytes a document, 20 a picture or row."""
PASSING = "unreachable shard"
"""The one fault of a shard that may pass; with any other it is left alone for the life of the process, so that its
documents do not each wait for all tries."""


@dataclass
class Split:
    """Shards of one split, opened when they are needed."""

    store: Store
    manifest: Manifest
    tokenizer: Tokenizer | None
    _open: dict[int, Shard] = field(default_factory=dict, init=False)
    _failed: dict[int, BadInput] = field(default_factory=dict, init=False)
    _index_bytes: int = field(default=0, init=False)
    _sources: int = field(default=1, init=False)
    _dtype: np.dtype[np.unsignedinteger] = field(init=False)
    _itemsize: int = field(init=False)

    def __post_init__(self) -> None:
        self._dtype = np.dtype(self.manifest.dtype or "<u2")
        self._itemsize = self._dtype.itemsize if self.manifest.format == "tokens" else 0

    @staticmethod
    def open(store: Store | Path, tokenizer: Tokenizer, manifest: Manifest | None = None) -> Split:
        """Open a split of text or tokens and check that it fits the tokenizer; its manifest is read unless given.

        Raises:
            DataError: it is not there, holds no text, or tokens of another tokenizer.
        """
        place: Store = Folder(store) if isinstance(store, Path) else store
        manifest = manifest or place.manifest()
        if manifest.kind != "text":
            raise DataError(
                f"{place.location} holds {manifest.kind}, and this model is trained on text; set data.path to prepared "
                "text"
            )
        if manifest.format == "tokens" and manifest.tokenizer == tokenizer.sha256:
            if np.dtype(manifest.dtype) != token_dtype(tokenizer):
                raise DataError(
                    f"{place.location} holds tokens of type {manifest.dtype}, which launch/prepare.py does not write "
                    f"for a vocabulary of {tokenizer.size:,}; do not use this data"
                )
        elif manifest.format == "tokens":
            raise DataError(
                f"{place.location} holds tokens of another tokenizer (sha256 {manifest.tokenizer[:16]}..., the run's "
                f"is {tokenizer.sha256[:16]}...); prepare it again with launch/prepare.py text --tokenizer"
            )
        return Split(place, manifest, tokenizer)

    @property
    def location(self) -> str:
        return self.store.location

    @property
    def is_remote(self) -> bool:
        return self.store.is_remote

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Tokens of a document (int32, or as they are stored), closed by the end-of-document token.

        Raises:
            BadInput: it cannot be read.
        """
        content = self.content(shard, document)
        if self._itemsize:
            try:
                tokens = np.frombuffer(content, dtype=self._dtype)
            except ValueError:
                raise self._not_tokens(shard, document, f"{len(content)} bytes are no whole number of tokens") from None
            # Larger ones of two bytes are found batch by batch, which costs less; these would turn negative.
            if self._itemsize > 2 and len(tokens) and tokens.max() >= 1 << 31:
                raise self._not_tokens(shard, document, f"token {tokens.max()} is no token")
            return tokens
        assert self.tokenizer is not None, "text needs a tokenizer to become tokens"
        text = text_of(content, self._open[shard].name, document)
        try:
            return self.tokenizer.encode(text)
        except RuntimeError as error:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
            raise self._not_tokens(shard, document, f"it cannot be tokenized: {error}") from None

    def text(self, shard: int, document: int) -> str:
        """The text of a document of text shards.

        Raises:
            BadInput: it cannot be read.
        """
        return text_of(self.content(shard, document), self._open[shard].name, document)

    def picture(self, shard: int, document: int) -> tuple[bytes, int]:
        """A picture's file as it came, and its label.

        Raises:
            BadInput: it cannot be read.
        """
        return self._labelled(shard, document, "picture")

    def row(self, shard: int, document: int) -> tuple[np.ndarray, int]:
        """The numbers of a row, [features] fp32, and its label.

        Raises:
            BadInput: it cannot be read.
        """
        content, label = self._labelled(shard, document, "row")
        try:
            return decoded(content, self.manifest.features), label
        except ValueError as error:
            words = f"{self._open[shard].name}: row {document}: {error}"
            raise BadInput("not a row", words, of_document=True) from None

    def _labelled(self, shard: int, document: int, what: str) -> tuple[bytes, int]:
        content = self.content(shard, document)
        opened = self._open[shard]
        label = opened.label(document)
        if not 0 <= label < len(self.manifest.classes):
            words = f"{opened.name}: {what} {document} has label {label} of {len(self.manifest.classes)} classes"
            raise BadInput("not a label", words, of_document=True)
        return content, label

    def content(self, shard: int, document: int) -> bytes:
        """The stored bytes of a document, checked against their checksum.

        Raises:
            BadInput: they cannot be read, or are not those that were written.
        """
        try:
            return self._shard(shard).document(document)
        except BadInput:
            if not self._may_heal(shard):
                raise
            return self._shard(shard).document(document)

    def tokens_lost(self, error: BadInput) -> np.ndarray:
        """What stands for the tokens of a document that could not be read: as many LOST (int32), if that is known."""
        known = error.size // self._itemsize if self._itemsize else 0
        return np.full(known, LOST, dtype=np.int32)

    def fetch_ahead(self, shard: int) -> None:
        if shard not in self._open:
            self.store.fetch_ahead(self.manifest.shards[shard])

    def share_open_files(self, sources: int) -> None:
        """So many splits share what this process may keep open."""
        self._sources = sources

    def _may_heal(self, shard: int) -> bool:
        """Whether an open shard that turned out damaged is only a copy, now dropped."""
        if shard not in self._open or not self.store.forget(self.manifest.shards[shard]):
            return False
        self._close(shard)
        return True

    def _shard(self, number: int) -> Shard:
        shard = self._open.pop(number, None)
        if shard is None:
            while len(self._open) >= OPEN_SHARDS // self._sources or self._index_bytes > INDEX_BYTES // self._sources:
                if not self._open:
                    break
                self._close(next(iter(self._open)))
            shard = self._opened(number)
            self._index_bytes += len(shard.rows)
        self._open[number] = shard  # last in the dictionary: the one used last
        return shard

    def _close(self, number: int) -> None:
        shard = self._open.pop(number)
        self._index_bytes -= len(shard.rows)
        shard.close()

    def _opened(self, number: int) -> Shard:
        if number in self._failed:
            raise self._failed[number]
        entry = self.manifest.shards[number]
        try:
            shard = self._with_room(entry)
            if len(shard) != entry.documents:
                shard.close()
                raise BadInput(
                    "damaged index",
                    f"{shard.name}: its index has {len(shard)} documents, the manifest {entry.documents}; the folder "
                    "was changed after it was prepared. Run launch/prepare.py verify.",
                )
        except BadInput as error:
            if error.kind != PASSING:
                self._failed[number] = error
            raise
        return shard

    def _with_room(self, entry: ShardEntry) -> Shard:
        """A shard from the store; where the system has no room for one more open file, in the place of all others.

        Raises:
            DataError: there is no room even then: that is no fault of the data, and loses none of it.
        """
        try:
            return self.store.shard(entry)
        except OSError:
            for other in list(self._open):
                self._close(other)
        try:
            return self.store.shard(entry)
        except OSError as error:
            raise DataError(
                f"{self.location}/{entry.name} cannot be opened: {error.strerror}; raise the limit of open files "
                "(ulimit -n), or give the machine more memory"
            ) from None

    def _not_tokens(self, shard: int, document: int, reason: str) -> BadInput:
        where = f"{self.location}/{self.manifest.shards[shard].name}: document {document}"
        return BadInput("not a row", f"{where}: {reason}", of_document=True)


def text_of(content: bytes, shard: str, document: int) -> str:
    """The text of a jsonl row.

    Raises:
        BadInput: it is no JSON object with a text.
    """
    try:
        text = json.loads(content)["text"]
        if not isinstance(text, str):
            raise TypeError("its text is not a string")
        return text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        words = f"{shard}: document {document} is no row with a text: {error}"
        raise BadInput("not a row", words, of_document=True) from None


def order_of(split: Split, *, seed: int, lanes: int, window: int) -> Order:
    """The order of a split.

    Raises:
        DataError: there are fewer documents than lanes.
    """
    if split.manifest.documents < lanes:
        raise DataError(
            f"{split.location} holds {split.manifest.documents} documents, too few for {lanes} lanes. Set data.lanes "
            "to at most that; or prepare more text; or cut long texts into more documents (launch/prepare.py text "
            "--document-characters)"
        )
    return Order([shard.documents for shard in split.manifest.shards], seed, lanes, window)
