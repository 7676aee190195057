"""metrics.jsonl, TensorBoard and events.jsonl, each one continuous curve however often the run was killed.

Rank 0 owns one :class:`Recorder`. A run that resumes at step s makes the steps after s again, so their old lines must
not stay beside the new ones: they are moved to metrics_undone.jsonl, and TensorBoard is told to forget them
(purge_step). Events are never moved: they tell what really happened, the killed attempts included.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from nt_pretrain.observe.rundir import RunDir, timestamp, write_atomic


class Recorder:
    """Writes metrics and events of a run.

    Args:
        rundir: an existing run directory.
        start_step: last optimizer step that is already done; 0 for a new run.
        tensorboard: also write TensorBoard files, with x = optimizer step.
    """

    def __init__(self, rundir: RunDir, *, start_step: int, tensorboard: bool) -> None:
        undo_after(rundir, start_step)
        self._metrics = rundir.metrics.open("a", encoding="utf-8", buffering=1)
        _end_last_line(rundir.events)
        self._events = rundir.events.open("a", encoding="utf-8", buffering=1)
        self._board = _summary_writer(rundir, start_step) if tensorboard else None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One line ``{"step", "time", key: value, ...}``, flushed. JSON has no nan or inf: those become null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._metrics.write(json.dumps({"step": step, "time": timestamp(), **finite}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, global_step=step)

    def image(self, key: str, step: int, path: Path) -> None:
        """A PNG file for TensorBoard."""
        if self._board is not None:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._board.add_image(key, pixels, global_step=step, dataformats="HWC")

    def event(self, kind: str, step: int, reason: str, facts: dict[str, Any]) -> None:
        """One line about what happened: ``kind`` is one word (docs/RUNDIR.md lists them), ``reason`` a sentence."""
        record = {"time": timestamp(), "kind": kind, "step": step, "reason": reason, "facts": facts}
        self._events.write(json.dumps(record, default=str) + "\n")

    def flush(self) -> None:
        """Hand TensorBoard's buffer to the system; call at checkpoints. The two jsonl files are never buffered."""
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
        if self._board is not None:
            self._board.close()


def undo_after(rundir: RunDir, step: int) -> int:
    """Move the lines of metrics.jsonl after ``step`` to metrics_undone.jsonl and drop a half-written line.

    Returns:
        Number of lines moved.
    """
    if not rundir.metrics.exists():
        return 0
    text = rundir.metrics.read_text(encoding="utf-8")
    kept: list[str] = []
    undone: list[str] = []
    for line in text.splitlines():
        at = _step_of(line)
        if at is not None:
            (kept if at <= step else undone).append(line)
    if undone:
        _end_last_line(rundir.metrics_undone)
        with rundir.metrics_undone.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in undone))
    whole = "".join(f"{line}\n" for line in kept)
    if whole != text:
        write_atomic(rundir.metrics, whole)
    return len(undone)


def _step_of(line: str) -> int | None:
    """Step of a metrics line; None for a line that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _end_last_line(path: Path) -> None:
    """Put a newline after a line that a kill cut short, so that the next line stands alone."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _summary_writer(rundir: RunDir, start_step: int) -> SummaryWriter:
    # purge_step hides everything from that step on in the files of earlier processes, which may have been killed before
    # their first checkpoint; a new run has nothing to hide.
    purge = start_step + 1 if any(rundir.tensorboard.glob("events.*")) else None
    return SummaryWriter(str(rundir.tensorboard), purge_step=purge, flush_secs=30)
