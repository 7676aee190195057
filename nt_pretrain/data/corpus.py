"""A prepared split, opened for reading: any document as tokens, in the order of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import Manifest, read_manifest
from nt_pretrain.data.order import Order
from nt_pretrain.data.shards import Shard
from nt_pretrain.data.tokenizer import Tokenizer

OPEN_SHARDS = 256
"""Shards kept open at once; each costs two file descriptors (a process may commonly have 1,024)."""


@dataclass
class Split:
    """Shards of one split, opened when they are needed."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer | None
    _open: dict[int, Shard] = field(default_factory=dict, init=False)

    @staticmethod
    def open(folder: Path, tokenizer: Tokenizer) -> Split:
        """Open a split and check that it fits the tokenizer.

        Raises:
            DataError: it is not there, or holds tokens of another tokenizer.
        """
        manifest = read_manifest(folder)
        if manifest.format == "images":
            raise DataError(
                f"{folder} holds pictures, and this model is trained on text; set data.path to prepared text"
            )
        if manifest.format == "tokens" and manifest.tokenizer != tokenizer.sha256:
            raise DataError(
                f"{folder} holds tokens of another tokenizer (sha256 {manifest.tokenizer[:16]}..., the run's is "
                f"{tokenizer.sha256[:16]}...); prepare it again with launch/prepare.py text --tokenizer"
            )
        return Split(folder, manifest, tokenizer)

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Tokens (int32) of a document, closed by the end-of-document token."""
        content = self._shard(shard).document(document)
        if self.manifest.format == "tokens":
            return np.frombuffer(content, dtype=self.manifest.dtype).astype(np.int32)
        assert self.tokenizer is not None, "text needs a tokenizer to become tokens"
        return self.tokenizer.encode(decode_row(content, self.folder / self.manifest.shards[shard].name, document))

    def text(self, shard: int, document: int) -> str:
        content = self._shard(shard).document(document)
        return decode_row(content, self.folder / self.manifest.shards[shard].name, document)

    def _shard(self, number: int) -> Shard:
        shard = self._open.pop(number, None)
        if shard is None:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            entry = self.manifest.shards[number]
            shard = Shard.open(self.folder / entry.name)
            if len(shard) != entry.documents:
                raise DataError(
                    f"{shard.path}: its index has {len(shard)} documents, the manifest {entry.documents}; the folder "
                    "was changed after it was prepared. Run launch/prepare.py verify."
                )
        self._open[number] = shard  # last in the dictionary: the one used last
        return shard


def decode_row(content: bytes, shard: Path, document: int) -> str:
    """Text of a jsonl row.

    Raises:
        DataError: it is no JSON object with a text.
    """
    try:
        text = json.loads(content)["text"]
        if not isinstance(text, str):
            raise TypeError("its text is not a string")
        return text
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{shard}: document {document} is no row with a text: {error}") from None


def order_of(split: Split, *, seed: int, lanes: int, window: int) -> Order:
    """The order of a split.

    Raises:
        DataError: there are fewer documents than lanes.
    """
    if split.manifest.documents < lanes:
        raise DataError(
            f"{split.folder} holds {split.manifest.documents} documents, too few for {lanes} lanes. Set data.lanes to "
            "at most that; or prepare more text; or cut long texts into more documents (launch/prepare.py text "
            "--document-characters)"
        )
    return Order([shard.documents for shard in split.manifest.shards], seed, lanes, window)
