"""Saves in the background: the state is copied, then a thread writes the copy while training goes on.

The thread runs :func:`nt_pretrain.checkpoint.save.save`, the same writer as a save that is waited for, on a process
group of its own: on one that training uses too, its collectives would meet those of training and neither would end.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.checkpoint.errors import CheckpointError, describe, together
from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.checkpoint.save import save
from nt_pretrain.checkpoint.snapshot import HostBuffers


class Progress(IntEnum):
    """How far the save in flight is on one rank; the largest of all ranks says how far it is as a whole."""

    NONE = 0
    DONE = 1
    WRITING = 2
    FAILED = 3

    @property
    def has_ended(self) -> bool:
        return self in (Progress.DONE, Progress.FAILED)


@dataclass(frozen=True)
class Saved:
    """A checkpoint in place; ``seconds`` from the call of ``start`` until it was there."""

    path: Path
    step: int
    seconds: float


class BackgroundSaver:
    """Writes one checkpoint at a time. ``start`` and ``settle`` are called by all ranks in the same order.

    Args:
        group: gloo group of all ranks that nobody else uses.
        device: the device of this rank's training.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._buffers = HostBuffers()
        self._thread: threading.Thread | None = None
        self._outcome: Saved | CheckpointError | None = None

    def start(
        self, root: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, identity: dict[str, Any]
    ) -> None:
        """Copy ``tensors`` and begin to write ``root/step_00001200``; arguments as of ``save``.

        Returns as soon as the copy is made: tensors may change, ``state`` and ``identity`` may not.
        """
        assert self._thread is None, "the save in flight has to be settled first"
        begin = time.perf_counter()
        copied = self._buffers.copy(tensors)
        arguments = (root, step, copied, state, identity, begin)
        self._outcome = None
        self._thread = threading.Thread(target=self._write, args=arguments, name=folder_name(step), daemon=True)
        self._thread.start()

    def progress(self) -> Progress:
        """Of this rank; returns at once."""
        if self._thread is None:
            return Progress.NONE
        if self._thread.is_alive():
            return Progress.WRITING
        return Progress.DONE if isinstance(self._outcome, Saved) else Progress.FAILED

    def settle(self, group: dist.ProcessGroup) -> Saved | None:
        """Wait until the save in flight is in place; None when there is none. Collective.

        Args:
            group: gloo group of all ranks that the caller may use.

        Raises:
            CheckpointError: on all ranks, when it failed on any.
        """
        return None if self._thread is None else together(group, "", self._wait)[dist.get_rank(group)]

    def wait(self) -> Saved | None:
        """As ``settle`` for a rank that is about to leave and cannot count on the others: not collective.

        Raises:
            CheckpointError: it failed.
        """
        return None if self._thread is None else self._wait()

    def _wait(self) -> Saved:
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        if isinstance(self._outcome, CheckpointError):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def _write(
        self,
        root: Path,
        step: int,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        identity: dict[str, Any],
        begin: float,
    ) -> None:
        try:
            if self._device.type == "cuda":
                # The current device belongs to a thread; without this each rank would open a context on device 0.
                torch.cuda.set_device(self._device)
            path = save(root, step, tensors, state, identity=identity, group=self._group)
            self._outcome = Saved(path, step, time.perf_counter() - begin)
        except CheckpointError as error:
            self._outcome = error
        except BaseException as error:  # torch's CheckpointException too, and a rank that was lost
            self._outcome = CheckpointError(f"cannot save {root / folder_name(step)}: {describe(error)}")
