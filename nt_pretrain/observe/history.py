"""Reading metrics.jsonl and events.jsonl back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Series = tuple[list[int], list[float]]


def read_lines(path: Path) -> list[Row]:
    """All whole JSON lines of a file that may still be written to; an absent file has none."""
    if not path.exists():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut short by a kill, or being written right now
    return rows


def series(rows: list[Row], key: str) -> Series:
    """Steps and values of ``key``, in order of steps; lines without it, and null (nan or inf), are left out."""
    points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
    points.sort(key=lambda point: point[0])
    return [step for step, _ in points], [value for _, value in points]


def last(rows: list[Row], key: str) -> float | None:
    """Value of ``key`` at the last step that has it."""
    values = series(rows, key)[1]
    return values[-1] if values else None


def event_steps(path: Path, kind: str) -> list[int]:
    """Steps at which events of one kind happened, each once: a step made again after a kill has its events twice."""
    return sorted({int(event["step"]) for event in read_lines(path) if event.get("kind") == kind})


def suffixes(rows: list[Row], prefix: str) -> list[str]:
    """What follows ``prefix`` in the keys that start with it, numbers in order of size: heads 0, 1, ..., or groups."""
    found = {key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)}
    return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
