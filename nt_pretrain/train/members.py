"""The members a run leaves behind: each a run directory of its own with weights and topology, listed in one manifest.

``RUN/members/NAME`` holds config.yaml and one checkpoint without moments; ``RUN/ensemble.json`` says what speaks.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import CheckpointError, on_first
from nt_pretrain.checkpoint.folders import folder_name, step_of
from nt_pretrain.checkpoint.load import Found, open_checkpoint
from nt_pretrain.checkpoint.manifest import MANIFEST, STATE, file_entry
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.compare_section import CompareSection
from nt_pretrain.config.load import to_yaml
from nt_pretrain.config.method_section import MethodSection
from nt_pretrain.config.schema import Config
from nt_pretrain.data.position import Position
from nt_pretrain.methods.curve import Blend, Mode, OnTrunks
from nt_pretrain.methods.manifest import Ensemble, Member, read_ensemble, write_ensemble
from nt_pretrain.methods.phase import Calendar, Clone, Continue, Part, Phase, changed
from nt_pretrain.methods.settings import dense, single
from nt_pretrain.observe.rundir import RunDir, write_atomic
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.clone import find_parent
from nt_pretrain.train.ends import End, add_end, read_ends, weights_hash
from nt_pretrain.train.remake import to_make_again
from nt_pretrain.train.resume import refuse_other_model
from nt_pretrain.train.state import TrainState, identity

KEPT = ("model.", "ema.", "active.", "columns.", "ids.")
"""Tensors of a member, by the beginnings of their names in a checkpoint; moments are not among them."""


@dataclass(frozen=True)
class Members:
    """Those of one run.

    ``trained_in`` has the checkpoints of the training: the run's own folder, or another where a member is made again.
    """

    config: Config
    calendar: Calendar
    rundir: RunDir
    tokenizer: str
    ranks: Ranks
    trained_in: RunDir

    @property
    def manifest(self) -> Path:
        return self.rundir.ensemble

    @property
    def ends(self) -> Path:
        """Where the phases ended: :mod:`nt_pretrain.train.ends`."""
        return self.rundir.members / "ends.json"

    def folder(self, name: str) -> Path:
        """Run directory of a member."""
        return self.rundir.members / name

    def parent_of(self, start: Clone | Part) -> Found:
        """The parent's checkpoint; every child of a run gets the same one once it is adopted. Collective.

        Raises:
            CheckpointError: it is not there, damaged, or no longer the one that the first child had.
        """
        path, sha256 = on_first(self.ranks.control, "cannot clone", lambda: self._parent(start))
        if not sha256:
            return find_parent(Path(path), self.ranks)
        found = open_checkpoint(Path(path), group=self.ranks.control)
        if on_first(self.ranks.control, "cannot clone", lambda: _hash(found.path)) != sha256:
            raise CheckpointError(f"{path} is not the parent that {self.manifest} lists; its children need that one")
        return found

    def adopt(self, start: Clone | Part, found: Found) -> None:
        """From now on ``found``, which fits, is the parent: one that was refused may be put right. Collective."""
        on_first(self.ranks.control, "cannot clone", lambda: self._list_parent(start, found))

    def refuse_other_parents(self) -> None:
        """Before a run goes on: its children keep the parent that the first one had. Collective.

        Raises:
            CheckpointError: another one is given now.
        """
        starts = [phase.start for phase in self.calendar if isinstance(phase.start, Clone | Part)]
        given = [start for start in starts if start.given]
        given += [_finished(mode) for phase in self.calendar for mode in phase.modes if mode.path]
        on_first(self.ranks.control, "cannot go on", lambda: [self._parent(start) for start in given])

    def mode(self, mode: Mode, config: Config) -> Found:
        """The checkpoint of a finished model, between which curves are laid and on whose trunk bridges stand.
        Collective.

        Args:
            config: of the phase that reads it; the model is one of its shape, without narrower heads or second trunks.

        Raises:
            CheckpointError: as :meth:`parent_of`; or it is of another model or tokenizer.
        """
        found = self.parent_of(_finished(mode))
        own = identity(single(dense(config)), self.tokenizer)
        refuse_other_model(found, {key: own[key] for key in ("model", "tokenizer", "weights")})
        self.adopt(_finished(mode), found)
        return found

    def parts_of(self, blend: Blend) -> list[tuple[Found, float]]:
        """The checkpoints that ``blend`` is a sum of, with their shares. Collective; errors as :meth:`mode`."""
        return [(self.mode(mode, self.config), share) for mode, share in blend.parts]

    def emit(self, phase: Phase, state: TrainState, *, trained: bool = False) -> str:
        """Write the member that the end of ``phase`` leaves, and the manifest. Collective.

        What is there already, from before a kill, stays.

        Args:
            trained: steps were made since this process began: a member that is there is of another attempt.

        Returns:
            What to tell people; "" where nothing was written.

        Raises:
            CheckpointError: on all ranks, when it cannot be written.
        """
        if phase.emits and (trained or not self._is_there(phase, state.step)):
            self._write(phase, state)
        doing = f"cannot write {self.manifest}"
        return on_first(self.ranks.control, doing, lambda: self._list(phase, state.step, self._end(phase, state)))

    def begin_of(self, phase: Phase) -> tuple[int, Position | None]:
        """Targets of all steps before ``phase``, and where the data stood. Collective.

        Raises:
            CheckpointError: that was not written down.
        """
        if not phase.before:
            return 0, None
        ends = on_first(self.ranks.control, f"cannot read {self.ends}", lambda: read_ends(self.ends))
        end = next(each for each in ends.values() if each.step == phase.before)
        return end.targets, Position.from_json(end.position)

    def to_make_again(self) -> tuple[list[Phase], list[str]]:
        """Phases whose members are listed and gone, and lines on those that cannot be made again. Collective."""

        def look() -> tuple[set[str], set[str]]:
            return {each.name for each in self._all() if self._is_gone(each)}, set(read_ends(self.ends))

        gone, ends = on_first(self.ranks.control, f"cannot read {self.manifest}", look)
        return to_make_again(self.calendar, gone, ends)

    def beside(self, name: str) -> RunDir:
        """Where a member is made again."""
        return RunDir(self.rundir.members / f".{name}")

    def forget(self) -> None:
        """Before more is trained: a manifest of the run's own checkpoint would soon name one that is gone."""
        if self.ranks.rank == 0 and any(each.path == "." for each in self._listed().members):
            self.manifest.unlink()

    def _write(self, phase: Phase, state: TrainState) -> None:
        folder = self.folder(phase.emits)
        tensors = {name: x for name, x in state.checkpoint_tensors().items() if name.startswith(KEPT)}
        # Where the data stands: commands that go on with samples the member has not seen ask for it.
        position = on_first(self.ranks.control, "cannot read the checkpoint", lambda: self._position(state.step))
        facts = state.facts(self.ranks) | {"phase": phase.name, "position": position}
        own = identity(phase.config, self.tokenizer)
        doing = f"cannot write {folder}"

        def prepare() -> bool:
            # Of another attempt, before this run was started anew from an earlier checkpoint.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run = {"run.dir": str(folder.parent), "run.name": folder.name}
            alone = changed(phase.config, run).model_copy(
                update={"method": MethodSection(), "compare": CompareSection()}
            )
            write_atomic(folder / "config.yaml", to_yaml(alone))
            return True

        on_first(self.ranks.control, doing, prepare)
        save(RunDir(folder).checkpoints, state.step, tensors, facts, identity=own, group=self.ranks.saving)

    def _is_there(self, phase: Phase, step: int) -> bool:
        """Whether this very member was written before. Collective."""

        def look() -> bool:
            known = {each.name: each for each in self._all()}
            member, path = known.get(phase.emits), self._checkpoint(phase, step)
            return member is not None and (path / MANIFEST).is_file() and _hash(path) == member.sha256

        return on_first(self.ranks.control, f"cannot read {self.manifest}", look)

    def _is_gone(self, member: Member) -> bool:
        checkpoint = RunDir(self.rundir.path / member.path).checkpoints / folder_name(member.step)
        if not (checkpoint / MANIFEST).is_file():
            return True
        # Made again, and killed before that was listed.
        return self.beside(member.name).path.is_dir() and _hash(checkpoint) != member.sha256

    def _checkpoint(self, phase: Phase, step: int) -> Path:
        return (RunDir(self.folder(phase.emits)) if phase.emits else self.rundir).checkpoints / folder_name(step)

    def _position(self, step: int) -> dict[str, Any]:
        found = json.loads((self.trained_in.checkpoints / folder_name(step) / STATE).read_bytes())["position"]
        return dict(found)

    def _end(self, phase: Phase, state: TrainState) -> str:
        """Write down where the phase ended; says of a member that is made again whether it is the same."""
        if len(self.calendar.phases) == 1 and self.trained_in.path == self.rundir.path:
            return ""
        weights = weights_hash(self._checkpoint(phase, state.step)) if phase.emits else ""
        before = read_ends(self.ends).get(phase.name)
        if self.trained_in.path == self.rundir.path or before is None:
            add_end(self.ends, phase.name, End(state.step, state.targets, self._position(state.step), weights))
            return ""
        # What was trained first stays what the next attempt is held against.
        if before.weights == weights:
            return "the same to the bit"
        return "not the same to the bit: ranks, options or versions differ"

    def _list(self, phase: Phase, step: int, again: str) -> str:
        """Add the member of ``phase``, or the run itself where nothing else speaks, to the manifest."""
        before = self._listed()
        if not phase.emits and phase.last < self.calendar.total_steps:
            return ""
        if not phase.emits and (self.config.method.name == "none" or before.members):
            return ""
        member = Member(
            name=phase.emits or self.config.method.name,
            path=f"members/{phase.emits}" if phase.emits else ".",
            step=step,
            sha256=_hash(self._checkpoint(phase, step)),
            made=self._made(phase) | (self._again(phase, again) if again else {}),
        )
        # One that was not written anew is what it was, whatever its parent may be since.
        known = next((each for each in self._all() if each.name == member.name), member)
        member = known if known.sha256 == member.sha256 else member
        lists = {
            kind: _with(getattr(before, kind), member) if mine else _without(getattr(before, kind), member)
            for kind, mine in (("members", phase.speaks), ("others", not phase.speaks))
        }
        method = self.config.method.model_dump(mode="json")
        write_ensemble(self.rundir.path, Ensemble(method, self.config.eval.ensemble, **lists))
        what = "speaks" if phase.speaks else "is made on the way"
        what += f", made again: {again}" if again else ""
        return f"{self.manifest}: {member.name} {what}" + (f", {self.folder(phase.emits)}" if phase.emits else "")

    def _made(self, phase: Phase) -> dict[str, Any]:
        """How a member was made, enough to make it again."""
        found: dict[str, Any] = {"phase": phase.name, "steps": phase.steps, "seed": phase.config.run.seed}
        match phase.start:
            case Clone(parent=parent, keeps=keeps, noise=noise):
                known = {each.name: each.sha256 for each in self._all()}
                found |= {"from": "clone", "parent": parent, "parent_sha256": known[_listed_as(phase.start)]}
                found |= {"keeps": asdict(keeps)} if keeps is not None else {}
                found |= {"noise": asdict(noise)} if noise is not None else {}
            case Part() as part:
                found |= {
                    "from": "part", "part": part.number, "of": part.of, "score": "L1 norm of incoming weights",
                    "dealing": part.dealing, "residual": part.residual, "parent": part.parent or "initial values",
                }  # fmt: skip
                if part.parent:
                    found["parent_sha256"] = {each.name: each.sha256 for each in self._all()}[_listed_as(part)]
                else:
                    found["parent_seed"] = part.wide.run.seed
            case Blend(parts):
                found |= {"from": "a blend", "parts": {mode.name: share for mode, share in parts}}
            case OnTrunks(modes):
                # Its folder holds copies of the trunks: with those of the modes they are computed once.
                found |= {"from": "its seed", "trunks": [mode.name for mode in modes]}
            case Continue(escape):
                found |= {"from": "the phase before"} | ({"escape": escape} if escape else {})
            case _:
                found["from"] = "its seed"
        if phase.curve is not None:
            found["curve"] = [phase.curve.first.name, phase.curve.last.name]
        if phase.distils is not None:
            found["teacher"] = {mode.name: share for mode, share in phase.distils.teacher.parts}
        return found

    def _again(self, phase: Phase, words: str) -> dict[str, Any]:
        """Of a member that was there before: others may name it by a hash it had."""
        before = next(each for each in self._all() if each.name == phase.emits)
        return {"again": words, "sha256_before": [*before.made.get("sha256_before", []), before.sha256]}

    def _listed(self) -> Ensemble:
        if not self.manifest.is_file():
            return Ensemble({}, self.config.eval.ensemble, [])
        return read_ensemble(self.manifest)

    def _parent(self, start: Clone | Part) -> tuple[str, str]:
        """Where the parent lies, and the hash it must have, "" for one from elsewhere that no child had yet."""
        listed = next((each for each in self._all() if each.name == _listed_as(start)), None)
        if listed is None and start.given:
            return start.parent, ""
        if listed is None:
            raise CheckpointError(f"{self.manifest} lists no {start.parent}, of which a child is to be made")
        if start.given:
            # Found there also where only one of the two folders was moved.
            asked = Path(start.parent)
            asked = asked if step_of(asked) is not None else RunDir(asked).checkpoints / folder_name(listed.step)
            if (asked / MANIFEST).is_file() and _hash(asked) == listed.sha256:
                return str(asked), listed.sha256
            before = listed.made.get("from", start.parent)
            if start.parent != before:
                raise CheckpointError(
                    f"{start.parent} is not {before}, which {self.manifest} lists as {listed.name} and of which this "
                    "run has made something already. Name that one again, or start a new run with another run.name"
                )
        return str(RunDir(self.rundir.path / listed.path).checkpoints / folder_name(listed.step)), listed.sha256

    def _list_parent(self, start: Clone | Part, found: Found) -> bool:
        if not start.given or any(each.name == _listed_as(start) for each in self._all()):
            return True
        # Both without links: the system follows those of a path before it goes up from them.
        run = os.path.relpath(found.path.parent.parent.resolve(), self.rundir.path.resolve())
        parent = Member(_listed_as(start), run, found.step, _hash(found.path), made={"from": start.parent})
        before = self._listed()
        kind = "members" if isinstance(start, Clone) and start.speaks else "others"
        lists: dict[str, Any] = {kind: [*getattr(before, kind), parent]}
        write_ensemble(self.rundir.path, replace(before, **lists))
        return True

    def _all(self) -> list[Member]:
        listed = self._listed()
        return [*listed.others, *listed.members]


def _with(members: list[Member], member: Member) -> list[Member]:
    """``member`` in the place of the one of its name, or at the end."""
    if not any(each.name == member.name for each in members):
        return [*members, member]
    return [member if each.name == member.name else each for each in members]


def _without(members: list[Member], member: Member) -> list[Member]:
    return [each for each in members if each.name != member.name]


def _finished(mode: Mode) -> Clone:
    """A mode as a parent: found, listed and told from others in the same way."""
    return Clone(mode.path or mode.name, given=bool(mode.path), listed=mode.name, speaks=mode.speaks)


def _listed_as(start: Clone | Part) -> str:
    if not start.given:
        return start.parent
    return start.listed if isinstance(start, Clone) else "parent"


def _hash(checkpoint: Path) -> str:
    return file_entry(checkpoint / MANIFEST).sha256
