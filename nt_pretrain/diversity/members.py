"""The voices of a run or of an ensemble's manifest, loaded as plain networks in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.checkpoint.manifest import MANIFEST, file_entry
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.diversity.voice import Forward, Voice, voices_of
from nt_pretrain.evaluation.load import Loaded, find, load
from nt_pretrain.evaluation.plain import make_plain
from nt_pretrain.evaluation.target import Target, config_of, target_of
from nt_pretrain.methods.manifest import NAME, Member, read_ensemble
from nt_pretrain.models.groups import part_of
from nt_pretrain.models.member_network import member_network, plain_section
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import build
from nt_pretrain.parallel.mesh import Ranks

MOST = 8
"""Voices on one page; more columns than that nobody compares."""


@dataclass(frozen=True)
class Part:
    """One checkpoint whose heads speak.

    Attributes:
        name: of the member; "" for the checkpoint of a run.
        heads: the numbers of those that speak; None: all.
        speaks: whether it is a member, not only what one was made from.
    """

    name: str
    target: Target
    config: Config
    heads: list[int] | None = None
    speaks: bool = True


@dataclass(frozen=True)
class Opened:
    """Voices with the configuration of the first; ``notes`` say what was left out. ``step`` of the first."""

    config: Config
    voices: list[Voice]
    step: int
    notes: list[str]


def parts_of(path: Path, overrides: list[str], samples: int) -> list[Part]:
    """The checkpoints that a run's folder, a checkpoint's folder or an ``ensemble.json`` names.

    A run's folder with an ``ensemble.json`` stands for that; what its members were made from comes first. The first
    ``samples`` of the validation split are to be read.

    Raises:
        ConfigErrors, CheckpointError: there is none, or its members do not go together.
    """
    manifest = path if path.name == NAME else path / NAME
    ensemble = read_ensemble(manifest) if manifest.is_file() or path.name == NAME else None
    if ensemble is not None and not ensemble.members and path.name == NAME:
        raise ConfigErrors([f"{manifest}: it has no members yet; they are listed as the run makes them"])
    if ensemble is None or not ensemble.members:
        target = target_of(str(path))
        return [Part("", target, _config(target, overrides, samples))]
    parts = []
    for member in [*ensemble.others, *ensemble.members]:
        folder = manifest.parent / member.path / "checkpoints" / folder_name(member.step)
        target = target_of(str(folder))
        _check(member, folder)
        config = _config(target, overrides, samples)
        parts.append(Part(member.name, target, config, member.heads, member in ensemble.members))
    kinds = {_kind(part.config) for part in parts}
    if len(kinds) > 1:
        raise ConfigErrors([f"{manifest}: members of different data cannot be compared: {sorted(kinds)}"])
    return parts


def open_voices(parts: list[Part], ranks: Ranks) -> Opened:
    """Load what :func:`parts_of` has found, all on one rank.

    Raises:
        CheckpointError, DataError: a checkpoint or tokenizer cannot be read.
    """
    voices: list[Voice] = []
    notes: list[str] = []
    steps = []
    for part in parts:
        if len(voices) >= MOST:
            break
        loaded = load(find(part.target, part.config, ranks), part.config, ranks)
        notes += [f"checkpoint skipped: {each}" for each in loaded.skipped]
        steps.append(loaded.step)
        voices += _voices(part, loaded)
    total = sum(len(part.heads) if part.heads is not None else part.config.model.voices for part in parts)
    if total > MOST:
        notes.append(f"the first {MOST} of {total} voices are shown")
    return Opened(parts[0].config, voices[:MOST], steps[0], notes)


def plain_network(model: MultiHead, config: Config) -> MultiHead:
    """A loaded model without FSDP2: modules of its own around the very layers of ``model``, which is spent by it."""
    make_plain(model, torch.float64 if config.train.precision == "fp64" else torch.float32)
    with torch.device("meta"):
        plain = build(config.model)
    for path, module in list(model.named_modules()):
        if not list(module.children()):
            if path:
                plain.set_submodule(path, module)
            continue
        # Units of FSDP2 are modules with children; what they hold themselves is moved over one by one.
        for name, parameter in module.named_parameters(recurse=False):
            setattr(plain.get_submodule(path), name, parameter)
    return plain


def _voices(part: Part, loaded: Loaded) -> list[Voice]:
    network = plain_network(loaded.model, part.config)
    if part.config.model.sharing != "none":
        return _sharing_voices(part, loaded, network)
    numbers = [int(each) for each in network.heads]
    found = voices_of(network, part.config.model, [_name(part, number) for number in numbers])
    voices = []
    for number, voice in zip(numbers, found, strict=True):
        if part.heads is None or number in part.heads:
            own = {"trunk", f"heads.{number}"}
            masks = {_alike(each.name): each.active for each in loaded.layers if part_of(each.name) in own}
            voices.append(replace(voice, masks=masks, speaks=part.speaks))
    return voices


def _sharing_voices(part: Part, loaded: Loaded, network: MultiHead) -> list[Voice]:
    """Members that share weights and topology: each a network of its own, or, of many inputs, an output of one."""
    model, voices = part.config.model, []
    masks = {_alike(each.name): each.active for each in loaded.layers}
    for member in range(model.members) if part.heads is None else part.heads:
        if model.sharing == "inputs":
            (voice,) = voices_of(network, model, [_name(part, member)])
            voice = replace(voice, forward=partial(_output, voice.forward, member))
        else:
            alone = member_network(network, model, member)
            (voice,) = voices_of(alone, plain_section(model), [_name(part, member)])
        voices.append(replace(voice, masks=masks, speaks=part.speaks))
    return voices


def _output(forward: Forward, member: int, inputs: Tensor, documents: Tensor | None) -> Tensor:
    return forward(inputs, documents)[member]


def _name(part: Part, head: int) -> str:
    if not part.name:
        return f"head {head}"
    name = part.name if part.speaks else f"{part.name} (no member)"
    return name if part.config.model.voices == 1 else f"{name}, head {head}"


def _alike(layer: str) -> str:
    """The name of a layer without the number of its head."""
    part = part_of(layer)
    return layer if part == "trunk" else f"head{layer.removeprefix(part)}"


def _config(target: Target, overrides: list[str], samples: int) -> Config:
    config = config_of(target, ["parallel.cpu_offload=false", *overrides], data=None, samples=samples)
    # The few samples of a page are read here: starting processes for them would take longer. One thread unless more
    # are asked for: the page is then the same on any machine, and its many small products are no slower.
    sections = {
        "data": config.data.model_copy(update={"workers": 0}),
        "run": config.run.model_copy(update={"threads_per_rank": config.run.threads_per_rank or 1}),
    }
    return config.model_copy(update=sections)


def _kind(config: Config) -> str:
    model = config.model
    return f"{model.classes} classes" if model.classifies else f"a vocabulary of {model.vocab_size}"


def _check(member: Member, folder: Path) -> None:
    try:
        found = file_entry(folder / MANIFEST).sha256
    except OSError as error:
        raise CheckpointError(f"member {member.name}: {error}") from None
    if found != member.sha256:
        raise CheckpointError(
            f"member {member.name}: {folder / MANIFEST} has the hash {found[:12]}…, the ensemble names "
            f"{member.sha256[:12]}…: it is another checkpoint; make the ensemble anew"
        )
