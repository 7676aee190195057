"""The children of an evolution whose loss is known: a file that a killed evolution leaves, and the next one reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.methods.mutation import Child
from nt_pretrain.observe.rundir import write_atomic
from nt_pretrain.parallel.mesh import Ranks

ASKED, LOSSES = "evolution.json", "children.jsonl"
PARENT = -1
"""Number of what the children of a generation are made of, in the list of losses."""


class Losses:
    """The finished children, in a file of one line each; rank 0 writes. Made by all ranks together.

    Raises:
        ConfigErrors: the folder holds another evolution.
        CheckpointError: on all ranks; it cannot be read or written.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], ranks: Ranks) -> None:
        self._path, self._ranks = folder / LOSSES, ranks
        other, done = on_first(ranks.control, f"cannot use {folder}", lambda: _opened(folder, asked))
        if other:
            raise ConfigErrors(
                [f"{folder} holds another evolution ({other}); give another --out, or move that folder away"]
            )
        self.known = {Child(generation, number): loss for generation, number, loss in done}

    def add(self, child: Child, loss: float) -> None:
        self.known[child] = loss
        line = json.dumps({"generation": child.generation, "child": child.number, "nll": loss})

        def write() -> bool:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
            return True

        on_first(self._ranks.control, f"cannot write {self._path}", write)


def _opened(folder: Path, asked: dict[str, Any]) -> tuple[str, list[tuple[int, int, float]]]:
    """By what an evolution in ``folder`` differs from the one ``asked`` for, or ""; and its finished children."""
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / ASKED
    if not there.is_file():
        write_atomic(there, json.dumps(asked, indent=1) + "\n")
    known = json.loads(there.read_text(encoding="utf-8"))
    other = "; ".join(f"{key} {known.get(key)}, now {value}" for key, value in asked.items() if known.get(key) != value)
    if other:
        return other, []
    path, done, whole = folder / LOSSES, [], ""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []:
        if not line.endswith("\n"):
            break  # half a line: killed while it was written
        found = json.loads(line)
        done.append((found["generation"], found["child"], found["nll"]))
        whole += line
    write_atomic(path, whole)
    return "", done
