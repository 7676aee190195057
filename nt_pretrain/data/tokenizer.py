"""SentencePiece: training that gives the same model for the same text, and encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import whole_file

PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3
"""Numbers of the control pieces in every tokenizer trained here."""


@dataclass(frozen=True)
class Tokenizer:
    """A loaded SentencePiece model.

    Attributes:
        sha256: of the model file; checkpoints and token shards remember it.
        end: number of the end-of-document token.
    """

    processor: sentencepiece.SentencePieceProcessor
    sha256: str
    end: int

    @property
    def size(self) -> int:
        return int(self.processor.vocab_size())

    def encode(self, text: str) -> np.ndarray:
        """Tokens (int32) of ``text``, closed by the end-of-document token."""
        found: np.ndarray = self.processor.encode(text, out_type="numpy", add_eos=True)
        return found


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every token; prepared tokens are of it."""
    return np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a SentencePiece model file.

    Raises:
        DataError: it cannot be read, or has no end-of-document piece.
    """
    try:
        content = Path(path).read_bytes()
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError) as error:
        raise DataError(f"tokenizer {path} cannot be loaded: {error}") from None
    if processor.eos_id() < 0:
        raise DataError(f"tokenizer {path} has no end-of-sentence piece; train one with launch/prepare.py tokenizer")
    return Tokenizer(processor, hashlib.sha256(content).hexdigest(), processor.eos_id())


def train_tokenizer(
    texts: Iterator[str], out: Path, *, vocab_size: int, kind: Literal["unigram", "bpe"], max_bytes: int
) -> int:
    """Train on the first ``max_bytes`` of ``texts`` and write ``out``; returns the bytes used.

    Byte fallback is on, so no text has unknown pieces. One thread and a fixed order make the model file a function of
    the text alone.

    Raises:
        DataError: the text is too small for so many pieces, or no text at all.
    """
    used = 0

    def limited() -> Iterator[str]:
        nonlocal used
        for text in texts:
            for line in text.splitlines():
                if used >= max_bytes:
                    return
                used += len(line.encode())
                yield line

    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(out) as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=limited(), model_writer=file, vocab_size=vocab_size, model_type=kind,
                byte_fallback=True, character_coverage=0.9999, num_threads=1, shuffle_input_sentence=False,
                max_sentence_length=1 << 20, pad_id=PAD, unk_id=UNKNOWN, bos_id=BEGIN, eos_id=END,
                normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                minloglevel=2,
            )  # fmt: skip
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise DataError(f"no tokenizer of {vocab_size} pieces from {used:,} bytes of text: {reason}") from None
    return used
