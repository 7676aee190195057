"""Which members' heads stand on copies of other members' trunks, so that one forward pass serves both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.features import trunk_depth
from nt_pretrain.eval.gather import summed_over_ranks
from nt_pretrain.eval.voices import Part, Voices
from nt_pretrain.evaluation.chosen import Chosen, Speaker
from nt_pretrain.methods.manifest import NAME, Member, read_ensemble
from nt_pretrain.methods.phase import changed
from nt_pretrain.methods.settings import single
from nt_pretrain.models.multihead import MultiHead, TwoTrunks
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import local


def listed_at_home(speaker: Speaker) -> dict[str, Member]:
    """By name, what the ensemble of the run lists in whose folder ``members`` the speaker lies; empty: in none."""
    manifest = speaker.target.rundir.path.resolve().parent.parent / NAME
    try:
        ensemble = read_ensemble(manifest)
    except ConfigErrors:
        return {}
    return {each.name: each for each in [*ensemble.others, *ensemble.members]}


def trunks_read(chosen: Chosen) -> dict[int, tuple[int, ...]]:
    """By the number of a speaker, those of the speakers on whose trunks its head stands, all of which speak before it.

    They are known by the hash of their checkpoints, whatever they are called.
    """
    numbers = {each.listed.sha256: number for number, each in enumerate(chosen.speakers) if each.listed}
    found = {}
    for number, each in enumerate(chosen.speakers):
        names = each.listed.made.get("trunks", []) if each.listed else []
        listed = listed_at_home(each) if names else {}
        modes = [numbers.get(listed[name].sha256) if name in listed else None for name in names]
        known = [mode for mode in modes if mode is not None and mode < number]
        if modes and len(known) == len(modes):
            found[number] = tuple(known)
    return found


def on_shared_trunks(voices: Voices, chosen: Chosen, ranks: Ranks) -> Voices:
    """The same voices; heads whose trunks are those of other members, bit for bit, read what these compute. Collective.

    Args:
        voices: one part for each speaker.
    """
    parts = list(voices.parts)
    found = on_first(ranks.control, "cannot read the ensemble", lambda: trunks_read(chosen))
    for number, modes in found.items():
        read = [parts[mode] for mode in modes]
        differ = 0 if _are_alike(parts[number], read) else 1
        if int(summed_over_ranks(torch.tensor([differ]), ranks)) == 0:
            parts[number] = replace(parts[number], trunks=tuple(each.model for each in read))
    return replace(voices, parts=tuple(parts))


def _are_alike(part: Part, modes: Sequence[Part]) -> bool:
    """Whether the trunks of ``part`` are the first blocks of those of ``modes``: computed alike, with the same bits of
    this rank's weights and statistics.
    """
    trunks = list(part.model.trunk.parts) if isinstance(part.model.trunk, TwoTrunks) else [part.model.trunk]
    if len(trunks) != len(modes) or any(_computed(part.config) != _computed(mode.config) for mode in modes):
        return False
    depth = trunk_depth(part.model)
    for number, mode in enumerate(modes):
        prefix = "trunk." if len(trunks) == 1 else f"trunk.parts.{number}."
        if trunk_depth(mode.model) < depth or isinstance(mode.model.trunk, TwoTrunks):
            return False
        own, other = _values(part.model, prefix), _values(mode.model, "trunk.")
        if any(name not in other or not torch.equal(value, other[name]) for name, value in own.items()):
            return False
    return True


def _computed(config: Config) -> tuple[object, ...]:
    """What decides, beside weights, what a trunk computes."""
    model = changed(single(config), {"model.dropout": 0.0}).model
    return model, config.train.precision, config.sparsity.backend


def _values(model: MultiHead, prefix: str) -> dict[str, torch.Tensor]:
    found = {name: local(parameter).detach() for name, parameter in model.named_parameters()} | statistics_of(model)
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
