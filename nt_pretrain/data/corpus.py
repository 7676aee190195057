"""A prepared split, opened for reading: any document as text, tokens or picture, in the order of a run."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.manifest import Manifest
from nt_pretrain.data.order import Order
from nt_pretrain.data.shards import LABELLED, Shard
from nt_pretrain.data.storage.store import Folder, Store
from nt_pretrain.data.tokenizer import Tokenizer

OPEN_SHARDS = 256
"""Shards kept open at once; each costs two file descriptors (a process may commonly have 1,024)."""
SECONDS_BEFORE_ANOTHER_TRY = {"unreachable shard": 15.0}
"""A shard that could not be opened is left alone: its next documents must not each wait for all tries. One that is not
there, or not what it should be, for the whole life of a reader."""


@dataclass
class Split:
    """Shards of one split, opened when they are needed."""

    store: Store
    manifest: Manifest
    tokenizer: Tokenizer | None
    _open: dict[int, Shard] = field(default_factory=dict, init=False)
    _failed: dict[int, tuple[float, BadInput]] = field(default_factory=dict, init=False)
    _dtype: np.dtype[np.unsignedinteger] = field(init=False)

    def __post_init__(self) -> None:
        self._dtype = np.dtype(self.manifest.dtype or "<u2")

    @staticmethod
    def open(store: Store | Path, tokenizer: Tokenizer, manifest: Manifest | None = None) -> Split:
        """Open a split of text or tokens and check that it fits the tokenizer; its manifest is read unless given.

        Raises:
            DataError: it is not there, holds pictures, or tokens of another tokenizer.
        """
        place: Store = Folder(store) if isinstance(store, Path) else store
        manifest = manifest or place.manifest()
        if manifest.format == "images":
            raise DataError(
                f"{place.location} holds pictures, and this model is trained on text; set data.path to prepared text"
            )
        if manifest.format == "tokens" and manifest.tokenizer != tokenizer.sha256:
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
        if self.manifest.format == "tokens":
            if len(content) % self._dtype.itemsize:
                raise self._not_tokens(shard, document, len(content))
            return np.frombuffer(content, dtype=self._dtype)
        assert self.tokenizer is not None, "text needs a tokenizer to become tokens"
        return self.tokenizer.encode(text_of(content, self._open[shard].name, document))

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
        content = self.content(shard, document)
        opened = self._open[shard]
        labels = opened.index["label"] if opened.index.dtype == LABELLED else np.array([], np.uint32)
        label = int(labels[document]) if len(labels) else -1
        if not 0 <= label < len(self.manifest.classes):
            words = f"{opened.name}: picture {document} has label {label} of {len(self.manifest.classes)} classes"
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

    def fetch_ahead(self, shard: int) -> None:
        if shard not in self._open:
            self.store.fetch_ahead(self.manifest.shards[shard])

    def _may_heal(self, shard: int) -> bool:
        """Whether an open shard that turned out damaged is only a copy, now dropped."""
        if shard not in self._open or not self.store.forget(self.manifest.shards[shard]):
            return False
        self._open.pop(shard).close()
        return True

    def _shard(self, number: int) -> Shard:
        shard = self._open.pop(number, None)
        if shard is None:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            shard = self._opened(number)
        self._open[number] = shard  # last in the dictionary: the one used last
        return shard

    def _opened(self, number: int) -> Shard:
        before = self._failed.get(number)
        if before is not None and time.monotonic() - before[0] < SECONDS_BEFORE_ANOTHER_TRY.get(
            before[1].kind, math.inf
        ):
            raise before[1]
        entry = self.manifest.shards[number]
        try:
            shard = self.store.shard(entry)
        except BadInput as error:
            self._failed[number] = time.monotonic(), error
            raise
        if len(shard) != entry.documents:
            shard.close()
            raise BadInput(
                "damaged index",
                f"{shard.name}: its index has {len(shard)} documents, the manifest {entry.documents}; the folder "
                "was changed after it was prepared. Run launch/prepare.py verify.",
            )
        return shard

    def _not_tokens(self, shard: int, document: int, size: int) -> BadInput:
        where = f"{self.location}/{self.manifest.shards[shard].name}: document {document}"
        return BadInput("not a row", f"{where}: {size} bytes are no whole number of tokens", of_document=True)


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
    except (ValueError, KeyError, TypeError) as error:
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
