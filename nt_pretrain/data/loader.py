"""Batches of a rank: reader processes, exact order, and the position that goes with each batch.

The global batch is a list of sequences ordered by lane. Rank r of R serves lanes r C / R to (r + 1) C / R - 1, so the
ranks' batches laid end to end are the global batch at every R. Each reader process serves some of its rank's lanes and
hands over their part of every batch; which process serves which lane changes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
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
from nt_pretrain.data.order import Order
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

    def __init__(self, config: Config, split: Split, order: Order, lane: int, cursor: Cursor) -> None:
        self._config, self._split, self._order, self._lane, self._cursor = config, split, order, lane, cursor

    def run(self) -> Iterator[Sequence]:
        def read(epoch: int, position: int) -> np.ndarray:
            return self._split.tokens(*self._order.document(epoch, self._lane, position))

        make = packed if self._config.data.packing == "pack" else truncated
        yield from make(read, self._order.lane_documents(self._lane), self._cursor, self._config.data.sequence_length)


@dataclass(frozen=True)
class _Part:
    """One reader's part of a batch, as a few tensors.

    Tensors travel in shared memory, and a message of some hundred bytes goes through the queue. A reader that is killed
    thus cannot leave half a message behind, on which its rank would wait for ever.

    Attributes:
        tokens, documents: [lanes, sequences per lane, T + 1] int32.
        cursors: [lanes, 3] int64, (epoch, document, offset) after the batch.
        error: if not empty, why there is nothing.
    """

    tokens: Tensor
    documents: Tensor
    cursors: Tensor
    error: str = ""


_NOTHING = torch.empty(0)


class _Reader(IterableDataset[_Part]):
    """In each reader process: for every batch the sequences of the lanes that this process serves."""

    def __init__(self, config: Config, folder: Path, cursors: dict[int, Cursor]) -> None:
        self._config, self._folder, self._cursors = config, folder, cursors

    def __iter__(self) -> Iterator[_Part]:
        info = get_worker_info()
        mine = sorted(self._cursors)[info.id :: info.num_workers] if info else sorted(self._cursors)
        try:
            pipelines = self._pipelines(mine)
            while True:
                yield self._next(pipelines)
        except (DataError, OSError) as error:
            # Exceptions lose their type and gain a traceback on the way out of a reader process.
            yield _Part(_NOTHING, _NOTHING, _NOTHING, str(error))

    def _pipelines(self, lanes: list[int]) -> list[Iterator[Sequence]]:
        config = self._config
        # Lanes share one tokenizer and the open shards, or files would be open lanes times over.
        split = Split.open(self._folder, load_tokenizer(config.data.tokenizer))
        order = order_of(split, seed=config.run.seed, lanes=config.lanes, window=config.data.window)
        sources = (LaneSource(config, split, order, lane, self._cursors[lane]) for lane in lanes)
        return [iter(webdataset.DataPipeline(source)) for source in sources]

    def _next(self, pipelines: list[Iterator[Sequence]]) -> _Part:
        each = self._config.train.global_batch // self._config.lanes
        sequences = [[next(pipeline) for _ in range(each)] for pipeline in pipelines]
        ends = [lane[-1].after for lane in sequences]
        tokens, documents = _stack([sequence for lane in sequences for sequence in lane])
        shape = (len(pipelines), each, self._config.data.sequence_length + 1)
        cursors = torch.tensor([[end.epoch, end.document, end.offset] for end in ends])
        return _Part(tokens.view(shape), documents.view(shape), cursors)


class TrainLoader:
    """Endless training batches of this rank; every iteration starts at ``position``.

    Args:
        rank, world: this rank among those that read different data.
        position: where to go on (of all lanes, or at least of this rank's); None: from the start.

    Raises:
        DataError: the data is not there, or the position belongs to other data or options.
    """

    def __init__(self, config: Config, *, rank: int, world: int, position: Position | None) -> None:
        lanes, data = config.lanes, config.data
        assert lanes % world == 0, f"{world} ranks cannot share {lanes} lanes equally"
        assert config.train.global_batch % lanes == 0, (
            f"{lanes} lanes cannot share {config.train.global_batch} sequences"
        )
        self._config = config
        self._folder = Path(data.path) / "train"
        tokenizer = load_tokenizer(data.tokenizer)
        if tokenizer.size != config.model.vocab_size:
            raise DataError(
                f"{data.tokenizer} has {tokenizer.size} pieces, model.vocab_size is {config.model.vocab_size}; "
                f"set model.vocab_size={tokenizer.size}"
            )
        split = Split.open(self._folder, tokenizer)
        order_of(split, seed=config.run.seed, lanes=lanes, window=data.window)
        self._plan = Plan(
            split.manifest.fingerprint, tokenizer.sha256, config.run.seed, lanes, data.window, data.sequence_length,
            data.packing, config.train.global_batch,
        )  # fmt: skip
        if position is not None:
            position.check(self._plan)
        self._batches_before = position.batch if position else 0
        self._lanes = range(rank * lanes // world, (rank + 1) * lanes // world)
        self._cursors = {lane: position.cursors[lane] if position else Cursor() for lane in self._lanes}

    def __iter__(self) -> Generator[Batch]:
        """Batches without end; close the generator to end its reader processes."""
        workers = min(self._config.data.workers, len(self._lanes))
        reader = _Reader(self._config, self._folder, self._cursors)
        parts: Any = iter(_processes(reader, workers, self._config.data.prefetch_batches))
        batch = self._batches_before
        try:
            while True:
                batch += 1
                yield self._assemble([_next_part(parts) for _ in range(max(1, workers))], batch)
        finally:
            if workers:
                # DataLoader has no public way. Left to the end of the process, it waits 5 s for every reader.
                parts._shutdown_workers()

    def _assemble(self, parts: list[_Part], batch: int) -> Batch:
        """Lanes in their order from the readers' parts: reader w of W serves the w-th, (w + W)-th, ... lane."""
        count, length = len(self._lanes), self._config.data.sequence_length + 1
        tokens = torch.empty(count, self._config.train.global_batch // self._config.lanes, length, dtype=torch.int32)
        documents = torch.empty_like(tokens)
        cursors = torch.empty(count, 3, dtype=torch.int64)
        for worker, part in enumerate(parts):
            tokens[worker :: len(parts)] = part.tokens
            documents[worker :: len(parts)] = part.documents
            cursors[worker :: len(parts)] = part.cursors
        after = {lane: Cursor(*values) for lane, values in zip(self._lanes, cursors.tolist(), strict=True)}
        position = Position(self._plan, batch, after)
        return Batch(tokens.view(-1, length), documents.view(-1, length), position)


def _processes(reader: _Reader, workers: int, prefetch: int) -> DataLoader[_Part]:
    if workers == 0:
        return DataLoader(reader, batch_size=None)
    context = multiprocessing.get_context("forkserver")
    # Threads of the training process are never forked; what readers import is loaded once, in the server.
    context.set_forkserver_preload(["nt_pretrain.data.loader"])
    return DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        worker_init_fn=_settle_in,
        multiprocessing_context=context,
    )


def _settle_in(worker: int) -> None:
    """Begin life as a reader process, which ends when the training process says so or is gone, and at no other signal.

    Schedulers send SIGTERM to all processes of a run: readers go on then, until the training process has saved.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Blocked here, and so in all threads that start later: only the watching thread receives it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with_trainer, daemon=True).start()


def _leave_with_trainer() -> None:
    """End this reader when the training process ends it, or was killed.

    Nobody else would: a reader is a child of the fork server, which itself stays as long as it has children.
    """
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "runs in reader processes only"
    while trainer.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == trainer.pid:
            break
    os._exit(0)


def _next_part(parts: Iterator[Any]) -> _Part:
    """The next reader's part.

    Raises:
        DataError: the reader met bad data, or has died.
    """
    try:
        part: _Part = next(parts)
    except (RuntimeError, OSError, EOFError) as error:
        # OSError and EOFError: it died with its part made but not fetched.
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
            raise
        raise DataError(
            f"a reader process ended unexpectedly ({str(error) or type(error).__name__}). The usual cause is memory: "
            "look for it in the system's log, lower data.prefetch_batches, or read in the training process with "
            "data.workers=0. The same command goes on from the last checkpoint."
        ) from None
    if part.error:
        raise DataError(part.error)
    return part


def _stack(sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(np.stack([each.tokens for each in sequences]).astype(np.int32, copy=False))
    return tokens, torch.from_numpy(np.stack([each.documents for each in sequences]))


def validation_batches(config: Config, *, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The fixed validation sequences as (tokens, documents) [S, T + 1]: the same set at every world size.

    Every rank yields the same number of batches; sequences that only fill up a batch are all padding. Documents come in
    the order of the shards, each once: where there is less text than ``eval.sequences``, what there is.

    Raises:
        DataError: the validation split cannot be read, or holds less than one sequence.
    """
    size, length = config.eval.micro_batch, config.data.sequence_length + 1
    sequences = _validation_sequences(config)
    filler = Sequence(np.zeros(length, np.int32), np.full(length, PADDING, np.int32), Cursor())
    for first in range(rank * size, -(-len(sequences) // (world * size)) * world * size, world * size):
        batch = sequences[first : first + size]
        yield _stack(batch + [filler] * (size - len(batch)))


def _validation_sequences(config: Config) -> list[Sequence]:
    """The first ``eval.sequences`` whole sequences of the validation split."""
    data = config.data
    split = Split.open(Path(data.path) / "validation", load_tokenizer(data.tokenizer))
    places = [(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]

    def read(epoch: int, position: int) -> np.ndarray:
        if epoch:
            raise _AllRead
        return split.tokens(*places[position])

    make = packed if data.packing == "pack" else truncated
    found: list[Sequence] = []
    try:
        for sequence in make(read, len(places), Cursor(), data.sequence_length):
            found.append(sequence)
            if len(found) == config.eval.sequences:
                break
    except _AllRead:
        pass
    if not found:
        raise DataError(
            f"{split.folder}: less than one sequence of {data.sequence_length} tokens; prepare more text or a larger "
            "--validation-share"
        )
    return found


class _AllRead(Exception):
    """Every validation document was read once."""


def unigram_counts(config: Config, limit: int) -> np.ndarray:
    """How often each token occurs in the first ``limit`` training tokens, in the order of the shards.

    Returns [vocabulary] int64.
    """
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
