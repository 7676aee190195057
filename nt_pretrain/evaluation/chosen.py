"""What the words of a command line choose to speak: one checkpoint, or the members that an ``ensemble.json`` lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.checkpoint.manifest import MANIFEST, file_entry, read_manifest
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.members import head_names
from nt_pretrain.eval.voices import ambiguous
from nt_pretrain.evaluation.target import Target, config_of, target_of
from nt_pretrain.methods import manifest
from nt_pretrain.methods.manifest import Ensemble, Member, read_ensemble
from nt_pretrain.observe.rundir import RunDir

INPUTS = {
    "tokens": (("model", "vocab_size"), ("data", "sequence_length"), ("data", "packing")),
    "pictures": (("model", "classes"), ("data", "picture_size"), ("data", "picture_shorter")),
    "rows": (("model", "classes"), ("model", "features")),
}
"""Options in which members must agree, since all see the same inputs and choose between the same classes."""
SHOWN = 8
"""Members that a message names at most."""
WHERE = ("path", "sources")
"""Options of ``data`` in which members must agree unless the command line names the data."""


@dataclass(frozen=True)
class Speaker:
    """One checkpoint that speaks.

    Attributes:
        name: of the member; "" where it is the only one and no ensemble was named.
        config: its run's, to measure with; of an ensemble all have the data of the first.
        heads: numbers of the heads that speak.
        listed: what the ensemble says of it.
    """

    name: str
    target: Target
    config: Config
    heads: tuple[int, ...]
    listed: Member | None = None

    @property
    def voices(self) -> list[str]:
        """Names of its heads among those of all: the member's name, with the head's number where it has several."""
        own = head_names(self.config.model.voices)
        if not self.name:
            return [own[head] for head in self.heads]
        return [self.name] if len(own) == 1 else [f"{self.name}.{own[head]}" for head in self.heads]


@dataclass(frozen=True)
class Chosen:
    """All that speak.

    Attributes:
        home: the run's folder, or that of the ``ensemble.json``: evaluations are written there.
        manifest: the ``ensemble.json`` and what it holds; None: one checkpoint was chosen.
        why: how the words of the command line were understood, where that may surprise; or "".
    """

    home: RunDir
    speakers: list[Speaker]
    manifest: tuple[Path, Ensemble] | None = None
    why: str = ""

    @property
    def config(self) -> Config:
        """The first one's: what is no member's own, such as data, batches and devices, follows it."""
        return self.speakers[0].config

    @property
    def voices(self) -> list[str]:
        """Names of all that speak."""
        return [voice for speaker in self.speakers for voice in speaker.voices]

    def only(self, head: int) -> Chosen:
        """One voice alone, by its number among all.

        Raises:
            ConfigErrors: there is none of this number.
        """
        pairs = [(speaker, each) for speaker in self.speakers for each in speaker.heads]
        if 0 <= head < len(pairs):
            speaker, number = pairs[head]
            return replace(self, speakers=[replace(speaker, heads=(number,))])
        if self.manifest is None:
            raise ConfigErrors([f"--head {head}: there is none; the run has heads 0 to {len(pairs) - 1}"])
        listed = ", ".join(f"{at} {voice}" for at, voice in enumerate(self.voices))
        raise ConfigErrors([f"--head {head}: there is none; the ensemble has heads {listed}"])

    def member(self, name: str) -> Chosen:
        """The heads of one member alone.

        Raises:
            ConfigErrors: there is no such member.
        """
        found = [speaker for speaker in self.speakers if speaker.name == name and name]
        if not found:
            what = ", ".join(each.name for each in self.speakers) if self.manifest else "none: it is one checkpoint"
            raise ConfigErrors([f"--member {name}: there is none; members are {what}"])
        return replace(self, speakers=found)


def chosen_of(words: str, overrides: Sequence[str], *, data: str | None, samples: int) -> Chosen:
    """What ``words`` name: an ``ensemble.json``, a folder that holds one, a run, or a checkpoint.

    Args:
        overrides, data, samples: as :func:`nt_pretrain.evaluation.target.config_of`; overrides hold for all members.

    Raises:
        ConfigErrors: nothing is there, an option does not fit, or members do not fit one another.
        CheckpointError: a member's checkpoint is not the one that the ensemble lists.
    """
    path = ensemble_path(words)
    if path is None:
        target = target_of(words)
        config = config_of(target, overrides, data=data, samples=samples)
        return Chosen(target.rundir, [Speaker("", target, config, tuple(range(config.model.voices)))])
    ensemble, members = read_ensemble(path), _members(path)
    if not any(each.startswith("eval.ensemble=") for each in overrides):
        overrides = [*overrides, f"eval.ensemble={ensemble.combiner}"]
    speakers = [_speaker(path, member, overrides, data, samples) for member in members]
    named = data is not None or any(each.startswith(("data.path=", "data.sources=")) for each in overrides)
    if wrong := misfits(speakers, path, data_named=named):
        raise ConfigErrors(wrong)
    first = speakers[0].config.data
    speakers = [replace(each, config=each.config.model_copy(update={"data": first})) for each in speakers]
    chosen = Chosen(RunDir(path.parent), speakers, (path, ensemble))
    if twice := ambiguous(chosen.voices):
        raise ConfigErrors([f"{path}: the names {', '.join(twice)} cannot be told from others; rename these members"])
    return replace(chosen, why=_why(words, path, chosen))


def ensemble_path(words: str) -> Path | None:
    """The ``ensemble.json`` that ``words`` name, by itself or by the folder it lies in; None: they name none.

    Raises:
        ConfigErrors: the one in the folder cannot be read.
    """
    path = Path(words)
    if path.name == manifest.NAME:
        return path
    inside = path / manifest.NAME
    if not inside.is_file():
        return None
    members = read_ensemble(inside).members
    # A run whose one member is itself, or that has left none yet, is measured as any run.
    return None if not members or [each.path for each in members] == ["."] else inside


def misfits(speakers: Sequence[Speaker], where: Path | str, *, data_named: bool) -> list[str]:
    """In what members differ that must be alike, with both values; empty: they fit.

    Args:
        where: what lists them, for the message.
        data_named: the command line says which data all are measured on.
    """
    first, *others = speakers
    wrong = []
    for other in others:
        one, two = first.config, other.config
        kinds = (one.model.samples, two.model.samples)
        if kinds[0] != kinds[1]:
            wrong.append(
                f"{where}: {first.name} ({one.model.family}) is of {kinds[0]}, {other.name} ({two.model.family}) of "
                f"{kinds[1]}"
            )
            continue
        options = [*INPUTS[kinds[0]], *([] if data_named else [("data", key) for key in WHERE])]
        for section, key in options:
            values = [getattr(getattr(config, section), key) for config in (one, two)]
            if values[0] != values[1]:
                hint = "; give --data DIR to measure all on one corpus" if key in WHERE else ""
                wrong.append(
                    f"{where}: {section}.{key} of {first.name} is {values[0]}, of {other.name} {values[1]}{hint}"
                )
        tokenizers = [_tokenizer(each) for each in (first, other)]
        if tokenizers[0] != tokenizers[1]:
            wrong.append(
                f"{where}: {first.name} and {other.name} have different tokenizers (sha256 {tokenizers[0][:12]} and "
                f"{tokenizers[1][:12]})"
            )
    return wrong


def checkpoint_hash(checkpoint: Path) -> str:
    """Of a checkpoint's manifest, and so of all its files: what an ensemble knows it by.

    Raises:
        CheckpointError: there is none that can be read.
    """
    read_manifest(checkpoint)
    return file_entry(checkpoint / MANIFEST).sha256


def one_of(words: str) -> Target:
    """The run or checkpoint that ``words`` name, for commands that take one network; an ensemble of one member too.

    Raises:
        ConfigErrors: nothing is there, or an ensemble of several, by name or in the folder; it says which to choose of.
        CheckpointError: as :func:`chosen_of`.
    """
    path = ensemble_path(words)
    if path is None:
        return target_of(words)
    members = _members(path)
    if len(members) == 1 and members[0].heads is None:
        return _target(path, members[0])
    checkpoints = [_checkpoint(path, each) for each in members]
    more = f" and {len(checkpoints) - SHOWN} more" if len(checkpoints) > SHOWN else ""
    count = f"{len(members)} members" if len(members) > 1 else "1 member, of which not all heads speak"
    raise ConfigErrors(
        [
            f"{path}: an ensemble of {count}, and this command takes one network: name a member's folder or "
            f"checkpoint: {', '.join(map(str, checkpoints[:SHOWN]))}{more}"
        ]
    )


def _members(path: Path) -> list[Member]:
    if not (members := read_ensemble(path).members):
        raise ConfigErrors([f"{path}: no member yet; the run that makes them has not come to its first"])
    return members


def _checkpoint(path: Path, member: Member) -> Path:
    return RunDir(path.parent / member.path).checkpoints / folder_name(member.step)


def _speaker(path: Path, member: Member, overrides: Sequence[str], data: str | None, samples: int) -> Speaker:
    said, target = f"{path}: member {member.name}", _target(path, member)
    try:
        config = config_of(target, overrides, data=data, samples=samples)
    except ConfigErrors as error:
        raise ConfigErrors([f"{said}: {line}" for line in error.problems]) from None
    heads = tuple(range(config.model.voices)) if member.heads is None else tuple(sorted(set(member.heads)))
    if not heads or heads[0] < 0 or heads[-1] >= config.model.voices:
        raise ConfigErrors([f"{said}: heads {list(heads)}: it has heads 0 to {config.model.voices - 1}"])
    return Speaker(member.name, target, config, heads, member)


def _target(path: Path, member: Member) -> Target:
    """The checkpoint of a member that the ensemble at ``path`` lists; it is the one that was put into it."""
    rundir, checkpoint = RunDir(path.parent / member.path), _checkpoint(path, member)
    said = f"{path}: member {member.name}"
    if not rundir.config.is_file() or not checkpoint.is_dir():
        missing = checkpoint if rundir.config.is_file() else rundir.config
        raise CheckpointError(
            f"{said}: there is no {missing}; one that was deleted is made again by the command that trained it. "
            "An ensemble put together of several runs knows it by the hash it had: then, and where members were moved, "
            "put it together again with launch/ensemble.py"
        )
    try:
        found = checkpoint_hash(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{said}: {checkpoint}: {error}") from None
    if found != member.sha256:
        raise CheckpointError(
            f"{said}: {checkpoint} is not the checkpoint that was put into the ensemble: its {MANIFEST} has sha256 "
            f"{found[:12]}..., {member.sha256[:12]}... is listed. Put the original back, or put the ensemble together "
            "again with launch/ensemble.py"
        )
    return Target(rundir, checkpoint)


def _tokenizer(speaker: Speaker) -> str:
    """Hash of the tokenizer that a member was trained with; "" where there is none."""
    assert speaker.target.checkpoint is not None
    return str(read_manifest(speaker.target.checkpoint).identity.get("tokenizer", ""))


def _why(words: str, path: Path, chosen: Chosen) -> str:
    members, voices = len(chosen.speakers), len(chosen.voices)
    count = f"{members} members" if members > 1 else "1 member"
    heads = f" with {voices} heads" if voices != members else ""
    own = RunDir(path.parent).checkpoints.is_dir() and Path(words).name != manifest.NAME
    other = f"; for one checkpoint name it, as {path.parent}/checkpoints/step_N" if own else ""
    return f"{path}: an ensemble of {count}{heads}{other}"
