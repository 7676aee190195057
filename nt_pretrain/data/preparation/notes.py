"""Notes beside unfinished work: what is done already, and what was found while doing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nt_pretrain.data.files import whole_file

FOLDER = "notes"
"""Inside the unfinished folder; goes when that is complete."""


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Write a note; it stands once all of it is on disk."""
    with whole_file(path) as file:
        file.write(json.dumps(content).encode())


def read_note(path: Path) -> dict[str, Any] | None:
    """A note; None if there is none, or one that cannot be read: then the work is to be done."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
