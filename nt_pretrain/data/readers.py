"""Reader processes of a rank: each makes its lanes' part of every batch, and they are watched while they do."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.faults import merged, to_tensor
from nt_pretrain.data.lane import Lane, Reading
from nt_pretrain.data.position import Cursors, Plan
from nt_pretrain.data.samples import LaneSource, Sample, samples_of
from nt_pretrain.data.sources import Sources, mixture_of
from nt_pretrain.data.text import Cursor

TOLD = 10
"""Faults that are told with the error that ends a reader."""
STARTUP_SECONDS = 60.0
"""Silence allowed before a reader's first document: it loads modules, tokenizer and manifests, maybe over a network."""
POLL_SECONDS = 2.0
"""How often a rank that waits looks whether its readers are alive."""
_SIGN = 1 << 63


class ReaderLost(Exception):
    """A reader process died or stands still. Others, started where the last batch ended, may do better."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


@dataclass(frozen=True)
class Part:
    """One reader's part of a batch, as a few tensors.

    Tensors travel in shared memory, and a message of some hundred bytes goes through the queue. A reader that is killed
    thus cannot leave half a message behind, on which its rank would wait for ever.

    Attributes:
        arrays: of each array of a sample [lanes, samples per lane, ...].
        cursors: [lanes, sources, 4] int64: epoch, document, offset, digest after the batch.
        faults: what was met on the way (uint8; :mod:`nt_pretrain.data.faults`).
        error: if not empty, why there is nothing.
    """

    arrays: tuple[Tensor, ...]
    cursors: Tensor
    faults: Tensor
    error: str = ""


_NOTHING = torch.empty(0)


def to_numbers(cursor: Cursor) -> list[int]:
    """A cursor as signed 64-bit numbers."""
    digest = cursor.digest
    return [cursor.epoch, cursor.document, cursor.offset, digest - 2 * _SIGN if digest >= _SIGN else digest]


def from_numbers(values: list[int]) -> Cursor:
    return Cursor(values[0], values[1], values[2], values[3] % (2 * _SIGN))


class _Reader(IterableDataset[Part]):
    """In each reader process: its parts of the batches.

    Args:
        plan: what the data was when the run began.
        cursors: of each source and each lane of the rank.
        first_step: step of the first batch.
        progress: [readers, 4] int64 in shared memory: what each reader began last (source, shard, document) and when
            (ns of the monotonic clock).
    """

    def __init__(self, config: Config, plan: Plan, cursors: Cursors, first_step: int, progress: Tensor) -> None:
        self._config, self._plan, self._cursors = config, plan, cursors
        self._first_step, self._progress = first_step, progress

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        reader, readers = (info.id, info.num_workers) if info else (0, 1)
        row = self._progress[reader].numpy()

        def at(source: int, shard: int, document: int) -> None:
            row[0], row[1], row[2], row[3] = source, shard, document, time.monotonic_ns()

        def alive() -> None:
            row[3] = time.monotonic_ns()

        reading = Reading(at, alive)
        return parts_of(self._config, self._plan, self._cursors, reader, readers, self._first_step, reading)


def parts_of(
    config: Config, plan: Plan, cursors: Cursors, reader: int, readers: int, first_step: int, reading: Reading
) -> Iterator[Part]:
    """The parts of reader ``reader`` of ``readers``: those of every readers-th lane of ``cursors``, from it on."""
    lanes = sorted(next(iter(cursors.values())))[reader::readers]
    try:
        pipelines = _pipelines(config, plan, cursors, lanes, first_step, reading)
        while True:
            yield _next_part(config, pipelines, reading)
    except (DataError, OSError) as error:
        # Exceptions lose their type and gain a traceback on the way out of a reader process. What else was lost on the
        # way to a batch that never comes is told in the same breath.
        others = merged(reading.take())
        lines = [str(error), *(f"before that: {fault.kind}: {fault.words}" for fault in others[:TOLD])]
        more = [f"and {len(others) - TOLD:,} more"] if len(others) > TOLD else []
        yield Part((), _NOTHING, to_tensor([]), "\n".join(lines + more))


def _pipelines(
    config: Config, plan: Plan, cursors: Cursors, lanes: list[int], first_step: int, reading: Reading
) -> list[Iterator[tuple[Sample, list[Cursor]]]]:
    # Lanes share one tokenizer and the open shards, or files would be open lanes times over.
    sources = Sources.open(config, "train", reading.note, reading.alive)
    if sources.plan(config) != plan:
        raise DataError(
            f"{', '.join(split.location for split in sources.splits)}: the data was changed while the run was reading "
            "it. Set it back, and the same command goes on from the last checkpoint"
        )
    orders, mixture = sources.orders(config), mixture_of(config)
    per_step = config.train.global_batch // config.lanes
    pipelines = []
    for number in lanes:
        samples = []
        for source, (name, split, order) in enumerate(zip(sources.names, sources.splits, orders, strict=True)):
            most = int(config.data.max_bad_fraction * split.manifest.documents)
            samples.append(samples_of(Lane(source, name, split, order, number, reading, most), split, config))
        of_lane = [cursors[name][number] for name in sources.names]
        stage = LaneSource(samples, of_lane, mixture, number, per_step, first_step)
        pipelines.append(iter(webdataset.DataPipeline(stage)))
    return pipelines


def _next_part(config: Config, pipelines: list[Iterator[tuple[Sample, list[Cursor]]]], reading: Reading) -> Part:
    each = config.train.global_batch // config.lanes
    made = [[next(pipeline) for _ in range(each)] for pipeline in pipelines]
    columns = zip(*(sample.arrays for lane in made for sample, _ in lane), strict=True)
    arrays = [torch.from_numpy(np.stack(column)) for column in columns]
    if arrays[0].dtype == torch.int32 and int(arrays[0].max()) >= config.model.vocab_size:
        raise DataError(
            f"token {int(arrays[0].max()):,} of a vocabulary of {config.model.vocab_size:,}: the shards of tokens were "
            "not made with this tokenizer; prepare them again"
        )
    shaped = tuple(array.view(len(pipelines), each, *array.shape[1:]) for array in arrays)
    cursors = torch.tensor([[to_numbers(cursor) for cursor in lane[-1][1]] for lane in made])
    return Part(shaped, cursors, to_tensor(reading.take()))


class Readers:
    """The reader processes of one rank from given cursors on; an iterator of the parts of each batch.

    With 0 workers the calling process reads itself.

    Args:
        warn: told of a reader that is slow, in another thread.
    """

    def __init__(
        self, config: Config, plan: Plan, cursors: Cursors, first_step: int, warn: Callable[[str], None]
    ) -> None:
        self.count = min(config.data.workers, len(next(iter(cursors.values()))))
        self._stall_seconds, self._warn = config.stall_seconds, warn
        self._progress = torch.zeros(max(1, self.count), 4, dtype=torch.int64).share_memory_()
        self._names = tuple(cursors)
        reader = _Reader(config, plan, cursors, first_step, self._progress)
        self._parts: Any = iter(_processes(reader, self.count, config.data.prefetch_batches) if self.count else reader)
        self._waiting: tuple[int, float] | None = None
        self._stalled = ""
        self._closed = threading.Event()
        if self.count:
            threading.Thread(target=self._watch, name="watch readers", daemon=True).start()

    def parts(self) -> list[Part]:
        """The parts of the next batch, in the order of the readers.

        Raises:
            ReaderLost: a reader has died, or handed nothing over and was ended.
            DataError: a reader met what the run cannot do without.
        """
        return [self._part(reader) for reader in range(max(1, self.count))]

    def close(self) -> None:
        """End the processes, also those that do not listen any more."""
        self._closed.set()
        if not self.count:
            return
        for process in self._parts._workers:
            if process.is_alive():
                process.kill()
        # DataLoader has no public way. Left to the end of the process, it waits 5 s for every reader.
        self._parts._shutdown_workers()

    def _part(self, reader: int) -> Part:
        self._waiting = reader, time.monotonic()
        try:
            while True:
                try:
                    part: Part = next(self._parts)
                except (RuntimeError, OSError, EOFError) as error:
                    # OSError and EOFError: it died with its part made but not fetched.
                    text = str(error)
                    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
                        continue
                    if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in text:
                        raise
                    if self._stalled:
                        raise ReaderLost("reader stalled", self._stalled) from None
                    words = f"a reader process ended unexpectedly ({text or repr(error)})"
                    raise ReaderLost("reader died", words) from None
                if part.error:
                    raise DataError(part.error)
                return part
        finally:
            self._waiting = None

    def _watch(self) -> None:
        """In a thread: warn of a reader that is waited for, and end it when it is waited for too long.

        Not the waiting itself does this: a part that is announced is fetched from its reader, and that has no timeout.
        """
        warned = None
        while not self._closed.wait(min(0.5, self._stall_seconds / 8)):
            waiting = self._waiting
            if waiting is None:
                continue
            reader, since = waiting
            waited = time.monotonic() - since
            # One that begins document after document, or whose shard is coming, is slow and not stalled.
            heard = int(self._progress[reader, 3])
            silent = time.monotonic() - max(since, heard / 1e9)
            patience = self._stall_seconds if heard else max(self._stall_seconds, STARTUP_SECONDS)
            if silent >= patience and not self._stalled:
                self._stalled = self._words(self._culprit(reader), waited)
                # All of them: it may be another one's part that is being fetched, and all are replaced anyway.
                for process in self._parts._workers:
                    process.kill()
            elif waited >= self._stall_seconds / 2 and warned != waiting:
                warned = waiting
                self._warn(self._words(self._culprit(reader), waited))

    def _culprit(self, waited_for: int) -> int:
        """The reader that the system has stopped or holds in a disk's queue; else the one that is waited for."""
        for reader, process in enumerate(self._parts._workers):
            with contextlib.suppress(psutil.Error):
                if psutil.Process(process.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP):
                    return reader
        return waited_for

    def _words(self, reader: int, waited: float) -> str:
        source, shard, document, when = self._progress[reader].tolist()
        name = f" of source {self._names[source]}" if len(self._names) > 1 else ""
        last = (
            f"it began document {document} of shard {shard}{name} {time.monotonic() - when / 1e9:.0f} s ago"
            if when
            else "it has not begun any document"
        )
        pid = self._parts._workers[reader].pid
        return f"reader {reader} of {self.count} (process {pid}) has handed over nothing for {waited:.0f} s; {last}"


def _processes(reader: _Reader, workers: int, prefetch: int) -> DataLoader[Part]:
    context = multiprocessing.get_context("forkserver")
    # Threads of the training process are never forked; what readers import is loaded once, in the server.
    context.set_forkserver_preload(["nt_pretrain.data.readers"])
    return DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        worker_init_fn=settle_in,
        multiprocessing_context=context,
        timeout=POLL_SECONDS,
    )


def settle_in(worker: int) -> None:
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
