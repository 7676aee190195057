"""The checkpoints of a run: when one is begun, when it is known to be there, and what is told of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nt_pretrain.checkpoint.background import BackgroundSaver, Progress, Saved
from nt_pretrain.checkpoint.errors import CheckpointError, on_first
from nt_pretrain.checkpoint.save import retain, save
from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import Batch
from nt_pretrain.data.position import Position, merge
from nt_pretrain.observe.meters import Meter
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.observer import Observer
from nt_pretrain.train.state import TrainState


@dataclass
class Checkpoints:
    """Writes the checkpoints of this run, one at a time.

    With ``checkpoint.asynchronous`` the loop is held only while the state is copied; ``settle`` is called when the copy
    is written, at the latest by the next ``save``. ``begun`` are name and first step of the phases up to this one,
    ``recipe`` what all members of the run have in common.
    """

    config: Config
    state: TrainState
    ranks: Ranks
    rundir: RunDir
    observer: Observer
    identity: dict[str, Any]
    meter: Meter
    begun: list[tuple[str, int]]
    recipe: dict[str, Any]
    _background: BackgroundSaver = field(init=False)
    _held_seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._background = BackgroundSaver(self.ranks.saving, self.ranks.device)

    def save(self, batch: Batch, quarantine: dict[str, Any], *, wait: bool) -> None:
        """Save the state after ``batch`` was trained on; with ``wait`` it is in place on return. Collective.

        Args:
            quarantine: what of the data was lost so far.

        Raises:
            CheckpointError: on all ranks; also when the save before, still in flight until now, has failed.
        """
        self.settle()
        begin = time.perf_counter()
        # A kill may come right after the thread's commit: what belongs to this checkpoint is on the disk before it.
        self.observer.flush()
        self.state.seconds = self.meter.hours * 3600
        position = position_after(batch, self.ranks).to_json()
        facts = self.state.facts(self.ranks) | {
            "position": position,
            "quarantine": quarantine,
            "begun": self.begun,
            "recipe": self.recipe,
        }
        root, step, tensors = self.rundir.checkpoints, self.state.step, self.state.checkpoint_tensors()
        if self.config.checkpoint.asynchronous:
            self._background.start(root, step, tensors, facts, identity=self.identity)
            self._held_seconds = time.perf_counter() - begin
            if wait:
                self.settle()
        else:
            path = save(root, step, tensors, facts, identity=self.identity, group=self.ranks.saving)
            self._finish(Saved(path, step, time.perf_counter() - begin), begin, 0.0)

    def progress(self) -> Progress:
        """Of the save in flight, on this rank; returns at once."""
        return self._background.progress()

    def settle(self) -> None:
        """Wait for the save in flight, if there is one; tell of it and remove old checkpoints. Collective.

        Raises:
            CheckpointError: on all ranks, when it failed on any.
        """
        begin = time.perf_counter()
        saved = self._background.settle(self.ranks.control)
        if saved is not None:
            self._finish(saved, begin, self._held_seconds)

    def close(self) -> None:
        """Before this rank leaves, whatever the reason: wait for the save in flight. Not collective, raises nothing."""
        begin = time.perf_counter()
        try:
            saved = self._background.wait()
            if saved is not None and self.ranks.rank == 0:
                self._tell(saved, self._remove_old(saved.path), time.perf_counter() - begin + self._held_seconds)
        except (CheckpointError, OSError) as error:
            self.observer.warned(self.state.step, str(error))

    def _finish(self, saved: Saved, begin: float, held_before: float) -> None:
        size = on_first(self.ranks.control, "cannot remove old checkpoints", lambda: self._remove_old(saved.path))
        self._tell(saved, size, time.perf_counter() - begin + held_before)

    def _remove_old(self, newest: Path) -> int:
        """Bytes of ``newest``, once older checkpoints are gone."""
        retain(self.rundir.checkpoints, self.config.checkpoint.keep, verified=newest)
        return sum(file.stat().st_size for file in newest.iterdir())

    def _tell(self, saved: Saved, size: int, held_seconds: float) -> None:
        self.observer.saved(saved.step, str(saved.path), saved.seconds, held_seconds, size)


def position_after(batch: Batch, ranks: Ranks) -> Position:
    """Where the data of all ranks stands after ``batch``; each knows its own lanes only. Collective."""
    positions: list[Any] = [None] * ranks.world
    dist.all_gather_object(positions, batch.position_after.to_json(), group=ranks.control)
    return merge([Position.from_json(each) for each in positions])
