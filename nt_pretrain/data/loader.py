"""Batches of a rank: reader processes, exact order, and the position that goes with each batch.

The global batch is a list of sequences ordered by lane. Rank r of R serves lanes r C / R to (r + 1) C / R - 1, so the ranks'
batches laid end to end are the global batch at every R. Each reader process serves some of its rank's lanes and hands
over their part of every batch; which process serves which lane changes nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nt_pretrain.config.schema import Config
from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.position import Plan, Position
from nt_pretrain.data.text import PADDING, Cursor, Sequence, packed, truncated
from nt_pretrain.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Batch:
    """Sequences of one rank: tokens and document numbers [S, T + 1] (int32; -1 is padding), and the position after."""

    tokens: Tensor
    documents: Tensor
    position_after: Position


class LaneSource(webdataset.PipelineStage):
    """Source stage of a WebDataset pipeline: the sequences of one lane, from a cursor on.

    WebDataset's own sources split shards among ranks and shuffle with hidden state; neither can be resumed exactly.
    """

    def __init__(self, config: Config, folder: Path, lane: int, cursor: Cursor) -> None:
        self._config, self._folder, self._lane, self._cursor = config, folder, lane, cursor

    def run(self) -> Iterator[Sequence]:
        data = self._config.data
        split = Split.open(self._folder, load_tokenizer(data.tokenizer))
        order = order_of(split, seed=self._config.run.seed, lanes=self._config.lanes, window=data.window)
        first, stop = order.lane_bounds(self._lane)

        def read(epoch: int, position: int) -> np.ndarray:
            return split.tokens(*order.document(epoch, self._lane, position))

        make = packed if data.packing == "pack" else truncated
        yield from make(read, stop - first, self._cursor, data.sequence_length)


class _Reader(IterableDataset[dict[int, list[Sequence]]]):
    """In each reader process: for every batch the sequences of the lanes that this process serves."""

    def __init__(self, config: Config, folder: Path, cursors: dict[int, Cursor]) -> None:
        self._config, self._folder, self._cursors = config, folder, cursors

    def __iter__(self) -> Iterator[dict[int, list[Sequence]]]:
        info = get_worker_info()
        lanes = sorted(self._cursors)[info.id :: info.num_workers] if info else sorted(self._cursors)
        sources = {
            lane: iter(webdataset.DataPipeline(LaneSource(self._config, self._folder, lane, self._cursors[lane])))
            for lane in lanes
        }
        each = self._config.train.global_batch // self._config.lanes
        while True:
            try:
                batch = {lane: [next(source) for _ in range(each)] for lane, source in sources.items()}
            except DataError as error:
                # Exceptions lose their type and gain a traceback on the way out of a reader process.
                yield {-1: [str(error)]}  # type: ignore[list-item]
                return
            yield batch


class TrainLoader:
    """Endless training batches of this rank.

    Args:
        rank, world: this rank among those that read different data.
        position: where to go on; None: from the start.

    Raises:
        DataError: the data is not there, or the position belongs to other data.
    """

    def __init__(self, config: Config, *, rank: int, world: int, position: Position | None) -> None:
        self._config = config
        self._folder = Path(config.data.path) / "train"
        tokenizer = load_tokenizer(config.data.tokenizer)
        if tokenizer.size != config.model.vocab_size:
            raise DataError(
                f"{config.data.tokenizer} has {tokenizer.size} pieces, model.vocab_size is {config.model.vocab_size}; "
                f"set model.vocab_size={tokenizer.size}"
            )
        split = Split.open(self._folder, tokenizer)
        lanes, data = config.lanes, config.data
        order_of(split, seed=config.run.seed, lanes=lanes, window=data.window)
        self._plan = Plan(
            split.manifest.fingerprint, tokenizer.sha256, config.run.seed, lanes, data.window, data.sequence_length,
            data.packing, config.train.global_batch,
        )  # fmt: skip
        if position is not None:
            position.check(self._plan)
        self._batch = position.batch if position else 0
        mine = range(rank * lanes // world, (rank + 1) * lanes // world)
        self._cursors = {lane: position.cursors[lane] if position else Cursor() for lane in mine}

    def __iter__(self) -> Iterator[Batch]:
        workers = min(self._config.data.workers, len(self._cursors))
        reader = _Reader(self._config, self._folder, self._cursors)
        parts = iter(_processes(reader, workers, self._config.data.prefetch_batches))
        while True:
            lanes: dict[int, list[Sequence]] = {}
            for _ in range(max(1, workers)):
                lanes |= _next_part(parts)
            if -1 in lanes:
                raise DataError(str(lanes[-1][0]))
            self._batch += 1
            sequences = [sequence for lane in sorted(lanes) for sequence in lanes[lane]]
            cursors = {lane: lanes[lane][-1].after for lane in lanes}
            yield Batch(*_stack(sequences), Position(self._plan, self._batch, cursors))


def _processes(reader: _Reader, workers: int, prefetch: int) -> DataLoader[Any]:
    if workers == 0:
        return DataLoader(reader, batch_size=None)
    context = multiprocessing.get_context("forkserver")
    # Threads of the training process are never forked; what readers import is loaded once, in the server.
    context.set_forkserver_preload(["nt_pretrain.data.loader"])
    return DataLoader(
        reader, batch_size=None, num_workers=workers, prefetch_factor=prefetch, worker_init_fn=_quiet,
        multiprocessing_context=context,
    )  # fmt: skip


def _quiet(worker: int) -> None:
    """Reader processes leave signals to the training process, which saves and then ends them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def _next_part(parts: Iterator[Any]) -> dict[int, list[Sequence]]:
    try:
        return next(parts)  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise DataError(f"a reader process ended: {error}. Out of memory? Try data.workers=0.") from None


def _stack(sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(np.stack([each.tokens for each in sequences]).astype(np.int32))
    return tokens, torch.from_numpy(np.stack([each.documents for each in sequences]))


def validation_batches(config: Config, *, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The fixed validation sequences as (tokens, documents) [S, T + 1]: the same set at every world size.

    Every rank yields the same number of batches; sequences that only fill up a batch are all padding. Documents come in
    the order of the shards, each once: where there is less text than ``eval.sequences``, what there is.
    """
    size = config.eval.micro_batch
    sequences = _validation_sequences(config)
    rounds = math.ceil(len(sequences) / (world * size))
    length = config.data.sequence_length + 1
    filler = Sequence(np.zeros(length, np.int32), np.full(length, PADDING, np.int32), Cursor())
    for number in range(rounds):
        first = (number * world + rank) * size
        batch = sequences[first : first + size]
        yield _stack(batch + [filler] * (size - len(batch)))


def _validation_sequences(config: Config) -> list[Sequence]:
    """The first ``eval.sequences`` whole sequences of the validation split."""
    data = config.data
    split = Split.open(Path(data.path) / "validation", load_tokenizer(data.tokenizer))
    places = [(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]

    def read(epoch: int, position: int) -> np.ndarray:
        return split.tokens(*places[position])

    make = packed if data.packing == "pack" else truncated
    found: list[Sequence] = []
    for sequence in make(read, len(places), Cursor(), data.sequence_length):
        # The text is used once: a sequence that reaches into a second epoch is not part of the set.
        if sequence.after.epoch and sequence.after != Cursor(1, 0, 0):
            break
        found.append(sequence)
        if len(found) == config.eval.sequences or sequence.after.epoch:
            break
    if not found:
        raise DataError(
            f"{split.folder}: less than one sequence of {data.sequence_length} tokens; prepare more text or a larger "
            "--validation-share"
        )
    return found


def unigram_counts(config: Config, limit: int) -> np.ndarray:
    """How often each token occurs in the first training documents, up to ``limit`` tokens: [vocabulary] int64."""
    data = config.data
    split = Split.open(Path(data.path) / "train", load_tokenizer(data.tokenizer))
    counts = np.zeros(config.model.vocab_size, dtype=np.int64)
    seen = 0
    for number, shard in enumerate(split.manifest.shards):
        for document in range(shard.documents):
            if seen >= limit:
                return counts
            tokens = split.tokens(number, document)[: limit - seen]
            counts += np.bincount(tokens, minlength=len(counts))
            seen += len(tokens)
    return counts
