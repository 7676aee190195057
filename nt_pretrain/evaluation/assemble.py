"""Puts an ensemble together from finished runs, members and checkpoints, wherever they were trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.folders import candidates, step_of
from nt_pretrain.checkpoint.manifest import listing_problems, read_manifest
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import (
    WHERE,
    Chosen,
    Speaker,
    checkpoint_hash,
    chosen_of,
    ensemble_path,
    misfits,
)
from nt_pretrain.evaluation.target import config_of, target_of
from nt_pretrain.methods.manifest import Member
from nt_pretrain.observe.rundir import RunDir


def gathered(words: Sequence[str], out: Path, tell: Callable[[str], None]) -> Chosen:
    """The members that ``words`` name, as an ensemble in ``out`` will list them.

    Args:
        words: run directories (the newest whole checkpoint of each), checkpoints, or ensembles (all members of each).
        out: folder of the ``ensemble.json`` to come.
        tell: told what may surprise.

    Raises:
        ConfigErrors: something is not there, is named twice, or does not fit the others.
        CheckpointError: a run has no whole checkpoint, or an ensemble's member is not what was listed.
    """
    found = [each for word in words for each in _speakers(word, out, tell)]
    hashes = [each.listed.sha256 for each in found if each.listed]
    for number, each in enumerate(found):
        if each.listed and (first := hashes.index(each.listed.sha256)) < number:
            raise ConfigErrors(
                [f"{each.target.checkpoint}: the same checkpoint as {found[first].target.checkpoint}; name it once"]
            )
    found = _with_names(found)
    if wrong := misfits(found, "these members do not fit", data_named=True):
        raise ConfigErrors(wrong)
    for key in WHERE:
        places = {str(getattr(each.config.data, key)) for each in found}
        if len(places) > 1:
            tell(f"note: members have other data.{key}: {', '.join(sorted(places))}; evaluate with --data DIR")
    data = found[0].config.data
    return Chosen(
        RunDir(out), [replace(each, config=each.config.model_copy(update={"data": data})) for each in found]
    )  # fmt: skip


def _speakers(words: str, out: Path, tell: Callable[[str], None]) -> list[Speaker]:
    if ensemble_path(words) is not None:
        chosen = chosen_of(words, [], data=None, samples=0)
        assert chosen.manifest is not None
        combiner = chosen.manifest[1].combiner
        tell(f"{words}: all {len(chosen.speakers)} members of this ensemble (combined by {combiner} there)")
        return [_moved(each, out) for each in chosen.speakers]
    target = target_of(words)
    checkpoint = target.checkpoint or _newest(target.rundir, tell)
    config = config_of(target, [], data=None, samples=0)
    step = step_of(checkpoint.absolute())
    assert step is not None
    member = Member(
        name=target.rundir.path.absolute().name,
        path=_path(target.rundir.path, out),
        step=step,
        sha256=checkpoint_hash(checkpoint),
        made={"run": config.run.name, "seed": config.run.seed},
    )
    target = replace(target, checkpoint=checkpoint)
    return [Speaker(member.name, target, config, tuple(range(config.model.voices)), member)]


def _moved(speaker: Speaker, out: Path) -> Speaker:
    """A member of another ensemble, seen from ``out``."""
    assert speaker.listed is not None
    return replace(speaker, listed=replace(speaker.listed, path=_path(speaker.target.rundir.path, out)))


def _newest(rundir: RunDir, tell: Callable[[str], None]) -> Path:
    """The newest checkpoint with all its files; their content is checked when they are read."""
    for path in candidates(rundir.checkpoints):
        try:
            wrong = listing_problems(path, read_manifest(path))
        except CheckpointError as error:
            wrong = [str(error)]
        if not wrong:
            return path
        tell(f"checkpoint skipped: {path}: {'; '.join(wrong)}")
    raise CheckpointError(f"{rundir.path} has no whole checkpoint yet; it is written while the run trains")


def _path(folder: Path, out: Path) -> str:
    """Relative to ``out``, so that both may be moved together; absolute where they have nothing in common."""
    here, there = folder.resolve(), out.resolve()
    if os.path.commonpath([here, there]) == os.sep:
        return str(here)
    return os.path.relpath(here, there)


def _with_names(speakers: Sequence[Speaker]) -> list[Speaker]:
    """With names of their own: where several have one, with their steps, or else with numbers."""
    names = [each.name for each in speakers]
    steps = [f"{each.name}-{each.listed.step}" if each.listed else each.name for each in speakers]
    chosen = [step if names.count(name) > 1 else name for name, step in zip(names, steps, strict=True)]
    found = []
    for number, (each, name) in enumerate(zip(speakers, chosen, strict=True)):
        again = chosen[:number].count(name)
        name = f"{name}-{again + 1}" if again else name
        assert each.listed is not None
        found.append(replace(each, name=name, listed=replace(each.listed, name=name)))
    return found
