"""The folder of one run: where every file is, and how the small ones are written.

docs/RUNDIR.md shows the folder as a tree. Files that others may read at any moment (``status.json``, ``config.yaml``)
are replaced atomically: a reader sees the old one or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

State = Literal["running", "finished", "stopped", "failed"]


def timestamp(seconds: float | None = None) -> str:
    """UTC time as ISO 8601 with milliseconds; ``seconds`` since the epoch, or now."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; after a crash either the old or the new content is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _process_start() -> str:
    return timestamp(psutil.Process().create_time())


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands. ``exit_code`` is None while it runs; ``message`` is one plain line for people."""

    state: State
    step: int
    total_steps: int
    exit_code: int | None = None
    message: str = ""
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=_process_start)
    updated: str = field(default_factory=timestamp)


class RunDir:
    """Paths of a run directory. Nothing is created before :meth:`create`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.metrics_undone = self.path / "metrics_undone.jsonl"
        self.events = self.path / "events.jsonl"
        self.ranks = self.path / "ranks"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.members = self.path / "members"
        self.ensemble = self.path / "ensemble.json"
        self.report = self.path / "report"
        self.evaluation = self.path / "evaluation"
        self.lock = self.path / "LOCK"
        self.stop = self.path / "STOP"
        self.save = self.path / "SAVE"

    def create(self) -> None:
        """Make the folders. Every rank may call it at once."""
        for folder in (self.path, self.ranks, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)

    def rank_log(self, rank: int) -> Path:
        return self.ranks / f"rank_{rank:05d}.log"

    def write_config(self, text: str) -> None:
        write_atomic(self.config, text)

    def write_environment(self, facts: dict[str, Any]) -> None:
        """Write what :func:`nt_pretrain.observe.environment.collect` found."""
        write_atomic(self.environment, json.dumps(facts, indent=2) + "\n")

    def write_status(self, status: Status) -> None:
        write_atomic(self.status, json.dumps(asdict(status), indent=2) + "\n")

    def read_status(self) -> Status | None:
        """The last status; None if there is none or it is not one of ours (a run directory of another version)."""
        try:
            return Status(**json.loads(self.status.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
