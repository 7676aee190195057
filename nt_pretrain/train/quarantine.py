"""What of its data a run did without: gathered from all ranks, counted on each alike, named once in the events."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.faults import WHOLE_SHARD, Fault, merged
from nt_pretrain.data.loader import Batch
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.observer import Observer
from nt_pretrain.train.together import on_all_counted

SHOWN = 3
"""Faults of a kind that stand on the console; all stand in the events."""


@dataclass
class Quarantine:
    """Documents that could not be read, and readings that had to be repeated.

    Args:
        documents: of an epoch of each source.
        max_fraction: of them that may be lost in an epoch.

    Attributes:
        lost: documents lost by kind of fault.
        mended: faults by kind that lost nothing.
        of_epoch: documents lost by source and epoch (``"source/epoch"``).
    """

    ranks: Ranks
    observer: Observer
    documents: dict[str, int]
    max_fraction: float
    lost: dict[str, int] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    of_epoch: dict[str, int] = field(default_factory=dict)
    _named: set[tuple[str, str, str, int, int]] = field(default_factory=set)

    def next_batch(self, batches: Iterator[Batch], step: int) -> Batch:
        """The next batch, its faults counted and named. Collective.

        Raises:
            DataError: on every rank, if any cannot go on, or more is lost than may be.
        """
        # Ranks along the tensor axis read the same: one of them counts.
        counts = bool(self.ranks.counts)

        def counted(made: Batch) -> list[int]:
            return [len(made.faults) if counts else 0, *self._differences(made)]

        groups = self.ranks.sizes.data if self.ranks.sizes.tensor > 1 else 0
        batch, (faults, *different) = on_all_counted(self.ranks, lambda: next(batches), counted, 1 + groups)
        if faults:
            self._take(self._gathered(batch.faults if counts else []), step)
        if any(different):
            named = ", ".join(str(number) for number, difference in enumerate(different) if difference)
            raise DataError(
                f"ranks of one tensor group have read different batches (group {named}, step {step}): one could not "
                "read what another could. The same command goes on from the last checkpoint"
            )
        return batch

    def _differences(self, batch: Batch) -> list[int]:
        """One number for each group of tensor ranks, whose sum over the group is 0 if all have read the same batch."""
        tensor = self.ranks.sizes.tensor
        if tensor == 1:
            return []
        digest = hashlib.blake2b(digest_size=5)
        for array in batch.arrays:
            digest.update(np.ascontiguousarray(array.numpy()).data)
        number = int.from_bytes(digest.digest(), "little")
        found = [0] * self.ranks.sizes.data
        found[self.ranks.data_rank] = number * (tensor - 1) if self.ranks.counts else -number
        return found

    def facts(self) -> dict[str, Any]:
        """For a checkpoint (JSON): copies, since it is written while training goes on counting."""
        return {"lost": dict(self.lost), "mended": dict(self.mended), "of_epoch": dict(self.of_epoch)}

    def restore(self, facts: dict[str, Any]) -> None:
        self.lost, self.mended, self.of_epoch = (dict(facts.get(key, {})) for key in ("lost", "mended", "of_epoch"))

    def readings(self) -> dict[str, float]:
        """Metrics: documents lost so far; nothing before the first."""
        return {"data/lost_documents": float(sum(self.lost.values()))} if self.lost else {}

    def summary(self) -> str:
        """Everything in one sentence; empty where nothing was."""
        parts = []
        if self.lost:
            parts.append(f"{sum(self.lost.values()):,} documents could not be read ({_listed(self.lost)})")
        if self.mended:
            parts.append(f"mended: {_listed(self.mended)}")
        return "; ".join(parts)

    @contextmanager
    def summarised(self, say: Callable[[str], None], events: Path) -> Iterator[None]:
        """However the block ends, tell what was lost and mended."""
        try:
            yield
        finally:
            if self.summary():
                say(f"data: {self.summary()}; each named in {events}")

    def _gathered(self, faults: list[Fault]) -> list[Fault]:
        everywhere: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(everywhere, [asdict(fault) for fault in faults], group=self.ranks.control)
        return merged(Fault(**each) for rank in everywhere for each in rank)

    def _take(self, faults: list[Fault], step: int) -> None:
        for fault in faults:
            tally = self.lost if fault.masked else self.mended
            tally[fault.kind] = tally.get(fault.kind, 0) + (fault.masked or 1)
            if fault.masked:
                key = f"{fault.source}/{fault.epoch}"
                self.of_epoch[key] = self.of_epoch.get(key, 0) + fault.masked
            if not fault.masked or fault.place not in self._named:
                self._named.add(fault.place)
                shown = sum(place[0] == fault.kind for place in self._named) <= SHOWN
                self.observer.fault(step, fault.words, _facts(fault), echo=shown)
        for key, lost in self.of_epoch.items():
            source, epoch = key.rsplit("/", 1)
            whole = self.documents.get(source)
            if whole is not None and lost > self.max_fraction * whole:
                raise DataError(
                    f"{lost:,} of the {whole:,} documents of an epoch could not be read, more than "
                    f"data.max_bad_fraction ({self.max_fraction:g}) allows (source {source}, epoch {epoch}): "
                    f"{self.summary()}. Each is named in events.jsonl. Mend or copy the shards again, and the same "
                    "command goes on from the last checkpoint"
                )


def _facts(fault: Fault) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": fault.kind}
    if fault.shard:
        facts |= {"source": fault.source, "epoch": fault.epoch, "shard": fault.shard}
        facts["document"] = "all" if fault.document == WHOLE_SHARD else fault.document
    return facts


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
