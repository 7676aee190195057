"""The validation set of a run: the same sequences, pictures or rows, each counted once, at every world size.

What cannot be read ends the run: a validation over less than the set could not be compared with any other.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import evaluation_picture
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.disturbed_text import Disturb, counted_sequences
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.images import ImageError
from nt_pretrain.data.mixture import Mixture
from nt_pretrain.data.readers import settle_in
from nt_pretrain.data.samples import NO_LABEL
from nt_pretrain.data.sources import Sources, mixture_of
from nt_pretrain.data.text import PADDING, Cursor, Sequence, packed, truncated

Change = Callable[[Tensor, int], Tensor]
"""From a picture, uint8 [3, H, W], or a row, fp32 [features], and its number in the validation set to another of the
same shape. It is sent to the processes that read, so it must be picklable."""


def validation_batches(config: Config, *, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The fixed validation sequences as (tokens, documents) [S, T + 1]: the same set at every world size.

    Every rank yields the same number of batches; sequences that only fill up a batch are all padding. Documents come in
    the order of the shards, each once: where there is less text than ``eval.sequences``, what there is. Several sources
    share the sequences by their weights at the last step.

    Raises:
        DataError: the validation split cannot be read, or holds less than one sequence.
    """
    yield from _batches(_sequences(config), config, rank, world)


@dataclass(frozen=True)
class ValidationText:
    """Validation sequences, and how many characters all their targets spell (0: of token shards, nobody knows)."""

    sequences: list[Sequence]
    characters: int

    def batches(self, config: Config, *, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As :func:`validation_batches` yields them."""
        return _batches(self.sequences, config, rank, world)


def validation_text(config: Config, *, disturb: Disturb | None = None) -> ValidationText:
    """The sequences of :func:`validation_batches` with the characters they spell; or, disturbed, the same text of which
    ``disturb`` has changed every document (:func:`nt_pretrain.data.disturbed_text.counted_sequences`).

    Raises:
        DataError: the validation split cannot be read, holds less than one sequence, or is to be disturbed and holds
            tokens.
    """
    sources = Sources.of_text(config, "validation")
    if disturb is None and any(split.manifest.format != "text" for split in sources.splits):
        return ValidationText(_sequences(config), 0)
    data, found = config.data, []
    for split, share in _shared(sources, config):
        some = counted_sequences(split, packing=data.packing, length=data.sequence_length, count=share, disturb=disturb)
        if not some and disturb is None:
            raise _too_little(split, config)
        found += some
    return ValidationText([each.sequence for each in found], sum(each.characters for each in found))


def validation_samples(
    config: Config, *, rank: int, world: int, change: Change | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The fixed validation pictures as pixels [S, 3, H, W] (uint8, channels_last), or rows [S, features] (fp32), and
    labels [S] (int64).

    The same set at every world size, in the order of the shards; every rank yields the same number of batches, filled
    up with zeros of label -100. Decoded, and changed by ``change``, by ``data.workers`` processes. Samples are numbered
    from 0 in that order: sample k of batch b of a rank is number (b * world + rank) * S + k.

    Raises:
        DataError: the validation split cannot be read.
    """
    sources = Sources.open(config, "validation")
    assert sources.kind != "text", "sequences of text have no labels"
    size, total = config.eval.micro_batch, sum(sources.documents.values())
    if config.eval.sequences:
        total = min(total, config.eval.sequences)
    firsts = range(rank * size, -(-total // (world * size)) * world * size, world * size)
    loader = DataLoader(
        _Labelled(config, tuple(firsts), total, change),
        batch_size=None,
        num_workers=config.data.workers,
        worker_init_fn=settle_in,
        multiprocessing_context=multiprocessing.get_context("forkserver") if config.data.workers else None,
    )
    batches = iter(loader)
    while True:
        try:
            samples, labels, error = next(batches)
        except StopIteration:
            return
        except RuntimeError as lost:  # torch's word for a reader process that is gone
            raise DataError(
                f"a process that reads validation samples has died ({lost}). The usual cause is memory: look for it "
                "in the system's log, or read in the training process with data.workers=0"
            ) from None
        if error:
            raise DataError(error)
        yield samples.permute(0, 3, 1, 2) if sources.kind == "pictures" else samples, labels


@dataclass
class _Labelled(Dataset[Any]):
    """Validation batches of one rank by number: (pixels [S, H, W, 3] or rows [S, features], labels [S], what is
    wrong).
    """

    config: Config
    firsts: tuple[int, ...]
    total: int
    change: Change | None
    _places: list[tuple[Split, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, str]:
        size = self.config.eval.micro_batch
        samples, labels = _blank(self.config, size), torch.full((size,), NO_LABEL)
        try:
            if not self._places:  # opened by the process that reads
                splits = Sources.open(self.config, "validation").splits
                self._places = [(split, *place) for split in splits for place in _places(split)]
            first = self.firsts[number]
            for row, (split, shard, document) in enumerate(self._places[first : min(first + size, self.total)]):
                sample, labels[row] = _labelled(self.config, split, shard, document)
                if self.change is not None:
                    sample = self.change(sample, first + row)
                samples[row] = sample.permute(1, 2, 0) if samples.ndim == 4 else sample
        except DataError as error:
            # As text: exceptions lose their type on the way out of a reader process.
            return samples, labels, str(error)
        return samples, labels, ""


def _blank(config: Config, size: int) -> Tensor:
    """A batch of nothing: pixels [S, H, W, 3] or rows [S, features]."""
    if config.model.data == "rows":
        return torch.zeros(size, config.model.features)
    return torch.zeros(size, config.data.picture_size, config.data.picture_size, 3, dtype=torch.uint8)


def _labelled(config: Config, split: Split, shard: int, document: int) -> tuple[Tensor, int]:
    """A picture, uint8 [3, H, W], or a row, fp32 [features], and its label.

    Raises:
        DataError: it cannot be read.
    """
    if split.manifest.kind == "rows":
        row, label = split.row(shard, document)
        return torch.from_numpy(row.copy()), label
    content, label = split.picture(shard, document)
    try:
        size, shorter = config.data.picture_size, config.data.picture_shorter
        return evaluation_picture(content, size=size, shorter=shorter), label
    except ImageError as error:
        name = split.manifest.shards[shard].name
        raise DataError(f"{split.location}/{name}: picture {document}: {error}") from None


def unigram_counts(config: Config, limit: int) -> np.ndarray:
    """How often each token occurs in the first ``limit`` training tokens, in the order of the shards.

    Several sources share the tokens by their weights at the last step. What cannot be read is left out here; training
    counts and names it. Returns [vocabulary] int64.

    Raises:
        DataError: the training split cannot be read.
    """
    sources = Sources.of_text(config, "train")
    counts = np.zeros(config.model.vocab_size, dtype=np.int64)
    for split, share in zip(sources.splits, _shares(mixture_of(config), config.total_steps, limit), strict=True):
        seen = 0
        for shard, document in _places(split):
            if seen >= share:
                break
            try:
                tokens = split.tokens(shard, document)[: share - seen]
            except BadInput:
                continue
            counts += np.bincount(tokens, minlength=len(counts))
            seen += len(tokens)
    return counts


class _AllRead(Exception):
    """Every validation document was read once."""


def _sequences(config: Config) -> list[Sequence]:
    """The first ``eval.sequences`` whole sequences of the validation splits."""
    found: list[Sequence] = []
    for split, share in _shared(Sources.of_text(config, "validation"), config):
        some = _first_sequences(split, config, share)
        if not some:
            raise _too_little(split, config)
        found += some
    return found


def _shared(sources: Sources, config: Config) -> list[tuple[Split, int]]:
    """The splits that have a part in the validation, and how many sequences each gives; 0: all."""
    wanted = config.eval.sequences
    shares = _shares(mixture_of(config), config.total_steps, wanted) if wanted else [0] * len(sources.splits)
    return [(split, share) for split, share in zip(sources.splits, shares, strict=True) if share or not wanted]


def _too_little(split: Split, config: Config) -> DataError:
    return DataError(
        f"{split.location}: less than one sequence of {config.data.sequence_length} tokens; prepare more text or a "
        "larger --validation-share"
    )


def _first_sequences(split: Split, config: Config, count: int) -> list[Sequence]:
    """The first ``count`` whole sequences of a split; 0: all."""
    places = list(_places(split))

    def read(cursor: Cursor) -> np.ndarray:
        if cursor.document == len(places):
            raise _AllRead
        return split.tokens(*places[cursor.document])

    def following(cursor: Cursor) -> Cursor:
        return Cursor(0, cursor.document + 1)

    make = packed if config.data.packing == "pack" else truncated
    found: list[Sequence] = []
    try:
        for sequence in make(read, following, Cursor(), config.data.sequence_length):
            found.append(sequence)
            if len(found) == count:
                break
    except _AllRead:
        pass
    return found


def _places(split: Split) -> Iterator[tuple[int, int]]:
    """(shard, document) of every document of a split, in the order of the shards."""
    return ((n, document) for n, shard in enumerate(split.manifest.shards) for document in range(shard.documents))


def _shares(mixture: Mixture, step: int, whole: int) -> list[int]:
    """``whole`` in the shares of the sources at a step; what rounding leaves goes to the first."""
    if len(mixture.names) == 1:
        return [whole]
    counts = next(counts for first, counts in reversed(mixture.phases) if first <= step)
    shares = [whole * count // sum(counts) for count in counts]
    shares[shares.index(max(shares))] += whole - sum(shares)
    return shares


def _batches(sequences: list[Sequence], config: Config, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every rank's batches of the sequences, equally many, filled up with padding."""
    size, length = config.eval.micro_batch, config.data.sequence_length + 1
    filler = Sequence(np.zeros(length, np.int32), np.full(length, PADDING, np.int32), Cursor())
    for first in range(rank * size, -(-len(sequences) // (world * size)) * world * size, world * size):
        batch = sequences[first : first + size]
        yield _stack(batch + [filler] * (size - len(batch)))


def _stack(sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(np.stack([each.tokens for each in sequences]).astype(np.int32, copy=False))
    return tokens, torch.from_numpy(np.stack([each.documents for each in sequences]))
