"""Where the phases of a run ended: what one needs, beside its start, to be made again without those before it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.manifest import METADATA, STATE, read_manifest
from nt_pretrain.observe.rundir import write_atomic


@dataclass(frozen=True)
class End:
    """Of one phase.

    Attributes:
        targets: those of all steps so far.
        position: of the data (JSON).
        weights: :func:`weights_hash` of the member that it left; "": it left none.
    """

    step: int
    targets: int
    position: dict[str, Any]
    weights: str


def weights_hash(checkpoint: Path) -> str:
    """SHA-256 (hex) of the tensors of a checkpoint, as the ranks that saved it held them.

    Equal for equal tensors on equal meshes: what else a checkpoint holds names its folder and time.

    Raises:
        CheckpointError: it has no manifest that can be read.
    """
    files = read_manifest(checkpoint).files
    shards = [f"{name} {entry.sha256}" for name, entry in sorted(files.items()) if name not in (STATE, METADATA)]
    return hashlib.sha256("\n".join(shards).encode()).hexdigest()


def read_ends(path: Path) -> dict[str, End]:
    """By the names of phases; empty where none is written down.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {name: End(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it, the members that are there need none") from None


def add_end(path: Path, phase: str, end: End) -> None:
    """Write down that of ``phase`` too."""
    path.parent.mkdir(exist_ok=True)
    ends = read_ends(path) | {phase: end}
    write_atomic(path, json.dumps({name: asdict(each) for name, each in ends.items()}) + "\n")
