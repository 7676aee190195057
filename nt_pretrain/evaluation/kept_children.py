"""The kept children of an evolution as an ensemble: a member's folder for each, and the manifest."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.checkpoint.load import Found
from nt_pretrain.config.schema import Config
from nt_pretrain.evaluation.evolve import Wanted
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.target import Target
from nt_pretrain.evaluation.write_member import manifest_hash, write_member
from nt_pretrain.methods.manifest import Ensemble, Member, write_ensemble
from nt_pretrain.methods.mutation import Child
from nt_pretrain.parallel.mesh import Ranks


class KeptChildren:
    """The kept children as members of an ensemble, in folders of their own below ``out``. Collective."""

    def __init__(self, out: Path, target: Target, found: Found, loaded: Loaded, wanted: Wanted, ranks: Ranks) -> None:
        self._out, self._target, self._found, self._loaded = out, target, found, loaded
        self._members: list[Member]
        self._wanted, self._ranks, self._members = wanted, ranks, []

    def keep(self, child: Child, before: list[list[Child]]) -> None:
        """Write ``child``, which the loaded model now is; ``before``: whose means were parents on the way to it."""
        name = f"child_{child.generation}_{child.number}"
        folder = self._out / "members" / name
        sha256 = write_member(folder, self._loaded, self._target, self._found, self._ranks)
        made: dict[str, Any] = asdict(self._wanted.mutation) | asdict(child)
        made |= {"from": "mutation", "parent": str(self._found.path), "parent_sha256": self._parent_sha256}
        made |= {"means_of": [[each.number for each in best] for best in before]}
        self._members.append(Member(name, f"members/{name}", self._found.step, sha256, made=made))

    def write(self, config: Config) -> Path:
        """Write the manifest."""
        # Both without links: the system follows those of a path before it goes up from them.
        run = os.path.relpath(self._found.path.parent.parent.resolve(), self._out.resolve())
        parent = Member("parent", run, self._found.step, self._parent_sha256)
        method = {"name": "mutation"} | asdict(self._wanted.mutation) | {"children": self._wanted.children}
        ensemble = Ensemble(method, config.eval.ensemble, self._members, [parent])
        doing = f"cannot write into {self._out}"
        return on_first(self._ranks.control, doing, lambda: write_ensemble(self._out, ensemble))

    @property
    def _parent_sha256(self) -> str:
        return manifest_hash(self._found.path)
