"""Batches of a rank: exact order, the position that goes with each batch, readers that are replaced when they fail.

The global batch is a list of samples ordered by lane. Rank r of R serves lanes r C / R to (r + 1) C / R - 1, so the
ranks' batches laid end to end are the global batch at every R. Each reader process serves some of its rank's lanes and
hands over their part of every batch; which process serves which lane changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.faults import Fault, from_tensor, merged
from nt_pretrain.data.lane import carried_over
from nt_pretrain.data.position import Cursors, Position
from nt_pretrain.data.readers import Part, ReaderLost, Readers, from_numbers
from nt_pretrain.data.sources import Sources
from nt_pretrain.data.storage.cache import working_set_bytes
from nt_pretrain.data.text import Cursor

_LOG = logging.getLogger("nt_pretrain")
_ADVICE = {
    "reader died": "The usual cause is memory: look for it in the system's log, lower data.prefetch_batches, or read "
    "in the training process with data.workers=0.",
    "reader stalled": "Look at what it was reading: a disk or a network file system may hang. data.stall_seconds "
    "allows more time.",
}


@dataclass(frozen=True)
class Batch:
    """Samples of one rank and the position after them.

    Attributes:
        arrays: text: tokens and document numbers [S, T + 1] (int32; document -1 is padding). Pictures: pixels
            [S, 3, H, W] (uint8, channels_last) and labels [S] (int64; -100 is a picture that could not be read). Rows:
            numbers [S, features] (fp32) and labels.
        faults: what was met on the way to this batch.
    """

    arrays: tuple[Tensor, ...]
    position_after: Position
    faults: list[Fault]

    @property
    def tokens(self) -> Tensor:
        return self.arrays[0]

    @property
    def documents(self) -> Tensor:
        return self.arrays[1]

    @property
    def pixels(self) -> Tensor:
        return self.arrays[0]

    @property
    def labels(self) -> Tensor:
        return self.arrays[1]


class TrainLoader:
    """Endless training batches of this rank; every iteration starts at ``position``.

    Args:
        rank, world: this rank among those that read different data.
        position: where to go on (of all lanes, or at least of this rank's); None: from the start.
        local_world: ranks on this machine, which share the cache of remote shards.
        pin: batches in page-locked memory, from which a GPU copies while it computes.
        warn: told of a reader that is slow.

    Attributes:
        changes: what of the plan has changed since ``position``, in words; only with ``data.allow_change``.
        documents: documents of an epoch of each source.
        kind: what batches hold.

    Raises:
        DataError: the data is not there, or the position belongs to other data or options.
    """

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        world: int,
        position: Position | None,
        local_world: int = 1,
        pin: bool = False,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        lanes = config.lanes
        assert lanes % world == 0, f"{world} ranks cannot share {lanes} lanes equally"
        assert config.train.global_batch % lanes == 0, (
            f"{lanes} lanes cannot share {config.train.global_batch} sequences"
        )
        self._config, self._pin, self._warn = config, pin, warn
        sources = Sources.open(config, "train")
        orders = sources.orders(config)
        self._lanes = range(rank * lanes // world, (rank + 1) * lanes // world)
        _check_cache(config, sources, min(lanes, len(self._lanes) * local_world))
        self._plan, self.kind, self.documents = sources.plan(config), sources.kind, sources.documents
        self.changes = position.check(self._plan, allow_change=config.data.allow_change) if position else []
        self._batches_before = position.batch if position else 0
        self._cursors: Cursors = {name: {lane: Cursor() for lane in self._lanes} for name in sources.names}
        if position is not None:
            known = {name: position.cursors[name] for name in sources.names if name in position.cursors}
            self._cursors |= {name: {lane: cursors[lane] for lane in self._lanes} for name, cursors in known.items()}
        if position is not None:
            for name, order in zip(sources.names, orders, strict=True):
                if position.is_reordered(self._plan, name):
                    cursors = self._cursors[name]
                    self._cursors[name] = {lane: carried_over(order, lane, cursor) for lane, cursor in cursors.items()}

    def __iter__(self) -> Generator[Batch]:
        """Batches without end; close the generator to end its reader processes.

        Raises:
            DataError: too much cannot be read, or readers fail again and again.
        """
        batch, cursors, lost = self._batches_before, self._cursors, list[Fault]()
        while True:
            readers = Readers(self._config, self._plan, cursors, batch + 1, self._warn)
            try:
                while True:
                    made = self._assemble(readers.parts(), batch + 1, lost)
                    batch, cursors, lost = batch + 1, made.position_after.cursors, []
                    yield made
            except ReaderLost as error:
                lost = [*lost, Fault(error.kind, f"{error}; others take its place")]
                if len(lost) > self._config.data.reader_restarts:
                    raise DataError(
                        f"{error}. Readers were replaced {len(lost) - 1:,} x for this batch. {_ADVICE[error.kind]} The "
                        "same command goes on from the last checkpoint."
                    ) from None
                self._warn(str(error))
            finally:
                readers.close()

    def _assemble(self, parts: list[Part], batch: int, lost: list[Fault]) -> Batch:
        """Lanes in their order from the readers' parts: reader w of W serves the w-th, (w + W)-th, ... lane."""
        count = len(self._lanes)
        arrays = []
        for place, like in enumerate(parts[0].arrays):
            whole = torch.empty(count, *like.shape[1:], dtype=like.dtype, pin_memory=self._pin)
            for worker, part in enumerate(parts):
                whole[worker :: len(parts)] = part.arrays[place]
            arrays.append(whole.view(-1, *like.shape[2:]))
        if self.kind == "pictures":
            arrays[0] = arrays[0].permute(0, 3, 1, 2)
        cursors = torch.empty(count, *parts[0].cursors.shape[1:], dtype=torch.int64)
        for worker, part in enumerate(parts):
            cursors[worker :: len(parts)] = part.cursors
        numbers = cursors.tolist()
        after: Cursors = {
            name: {lane: from_numbers(numbers[row][source]) for row, lane in enumerate(self._lanes)}
            for source, name in enumerate(self._cursors)
        }
        faults = merged([*lost, *(fault for part in parts for fault in from_tensor(part.faults))])
        return Batch(tuple(arrays), Position(self._plan, batch, after), faults)


def _check_cache(config: Config, sources: Sources, lanes: int) -> None:
    """Refuse a cache that would fetch every shard again and again.

    Raises:
        DataError: with the size that is enough.
    """
    needed = sum(
        working_set_bytes(
            max(entry.bytes for entry in split.manifest.shards),
            split.manifest.documents // len(split.manifest.shards),
            lanes,
            config.data.window,
        )
        for split in sources.splits
        if split.is_remote
    )
    if needed > config.data.cache_gb * 1e9:
        raise DataError(
            f"data.cache_gb: {config.data.cache_gb:g} GB are too few for the {lanes} lanes that this machine reads at "
            f"a time: {needed / 1e9:.3g} GB are in use, and a smaller cache would fetch shards again and again. "
            f"Set data.cache_gb={-(-needed // 10**8) / 10:g}, or prepare smaller shards, or lower data.window"
        )
