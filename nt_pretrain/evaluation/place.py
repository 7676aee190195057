"""Where an evaluation is written: no record of another one is lost, and no figure of another one stays beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = "evaluation.json"
FIGURES = (
    "reliability.png", "risk_coverage.png", "reliability_calibrated.png", "disagreement.png", "heads_used.png",
    "mask_overlap.png", "robustness.png",
)  # fmt: skip
"""All that there may be."""


def free_folder(wanted: Path, asked: dict[str, Any]) -> tuple[Path, str]:
    """``wanted``, or, where a record of an evaluation that was asked for otherwise lies there, the first of
    ``wanted-2``, ``wanted-3``, ... without such a record; and why it is another, in words (or "").
    """
    folder, number, why = wanted, 1, ""
    while (record := folder / RECORD).exists() and (there := _asked_in(record)) != _as_json(asked):
        why = why or f"{record} is of another evaluation ({_difference(there, _as_json(asked))}) and stays"
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder, f"{why}; this one: {folder}" if why else ""


def remove_figures(folder: Path) -> list[str]:
    """Remove the figures of an evaluation; what else lies there stays. Returns why any could not be removed."""
    problems = []
    for name in FIGURES:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            problems.append(str(error))
    return problems


def _asked_in(record: Path) -> dict[str, Any]:
    """What the evaluation of a record was asked for; nothing where that cannot be read."""
    try:
        asked = json.loads(record.read_text(encoding="utf-8"))["asked"]
    except (ValueError, KeyError, TypeError):
        return {}
    return asked if isinstance(asked, dict) else {}


def _as_json(asked: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(asked))
    return read


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    if not there:
        return "what it was asked for cannot be read from it"
    names = [name for name in here if there.get(name) != here[name]]
    return "; ".join(f"{name} {json.dumps(there.get(name))}, now {json.dumps(here[name])}" for name in names)
