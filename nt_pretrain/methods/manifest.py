"""``ensemble.json``: the members of an ensemble, where their weights are, and how each was made.

A member's folder is a run directory of its own: ``config.yaml`` and one checkpoint without moments. So every command
that takes a run takes a member too, and an ensemble is no more than this list.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nt_pretrain.config.errors import ConfigErrors

NAME = "ensemble.json"
FORMAT = 1

Combiner = Literal["probability", "logit"]


@dataclass(frozen=True)
class Member:
    """One member, or several: a checkpoint with M heads speaks with M voices.

    Attributes:
        name: unique in the ensemble.
        path: its run directory, relative to the manifest's folder (``.``: the run itself).
        step: of its checkpoint.
        sha256: of the ``manifest.json`` of that checkpoint; with it a member is known, wherever it lies.
        heads: the heads that speak; None for all.
        made: how it was made (JSON): phase, source, parent and its hash, topology, seed.
    """

    name: str
    path: str
    step: int
    sha256: str
    heads: list[int] | None = None
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """Content of ``ensemble.json``.

    Attributes:
        method: name of the method and its options (JSON).
        combiner: how members' predictions become one; both rules are always reported.
        members: those that speak; none yet where a run has made only its parent.
        others: what was made on the way and does not speak, such as a parent.
    """

    method: dict[str, Any]
    combiner: Combiner
    members: list[Member]
    others: list[Member] = field(default_factory=list)


def write_ensemble(folder: Path, ensemble: Ensemble) -> Path:
    """Write ``ensemble.json`` into ``folder``, at once and whole."""
    path = folder / NAME
    beside = path.with_suffix(".json.tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT} | asdict(ensemble), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return path


def read_ensemble(path: Path) -> Ensemble:
    """Read an ``ensemble.json``.

    Raises:
        ConfigErrors: it is not there, no JSON, or lacks something; the message says what.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigErrors([f"{path}: there is no such ensemble"]) from None
    except (OSError, ValueError) as error:
        raise ConfigErrors([f"{path}: no readable JSON: {error}"]) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ConfigErrors([f"{path}: format {found}; this version reads format {FORMAT}"])
    try:
        members, others = (
            [Member(**{name: each[name] for name in _FIELDS if name in each}) for each in content[key]]
            for key in ("members", "others")
        )
        ensemble = Ensemble(content["method"], content["combiner"], members, others)
    except (KeyError, TypeError) as error:
        raise ConfigErrors([f"{path}: a part is missing or of another kind: {error}"]) from None
    names = [each.name for each in members]
    if len(set(names)) < len(names):
        raise ConfigErrors([f"{path}: members {names}: each needs a name of its own"])
    return ensemble


_FIELDS = [each.name for each in fields(Member)]
