"""The composition root of an evolution: loads a parent, evolves it, tells and writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.evaluation.batches import validation_set
from nt_pretrain.evaluation.evolve import Evolved, Wanted, asked_of, evolve, wanted_problems
from nt_pretrain.evaluation.finished_children import PARENT, Losses
from nt_pretrain.evaluation.kept_children import KeptChildren
from nt_pretrain.evaluation.load import Loaded, find, load
from nt_pretrain.evaluation.next_samples import NextSamples, next_samples
from nt_pretrain.evaluation.target import Target
from nt_pretrain.methods.mutation import Child
from nt_pretrain.observe.progress import shown_progress
from nt_pretrain.parallel.blocks import topologies
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.mutate import Mutable
from nt_pretrain.parallel.single import single_topologies


def run(
    target: Target, config: Config, wanted: Wanted, ranks: Ranks, tell: Callable[[str], None], *, out: Path | None
) -> Path:
    """Evolve a checkpoint and write the kept children as an ensemble; returns its manifest. Collective.

    Args:
        tell: what to do with lines for people; called on rank 0 only.
        out: folder of what is written; None: ``evolution/step_N`` in the run's folder.

    Raises:
        ConfigErrors, CheckpointError, DataError: on all ranks.
    """
    if wrong := wanted_problems(wanted):
        raise ConfigErrors(wrong)
    found = find(target, config, ranks)
    data = validation_set(config, ranks)
    training = next_samples(config, found.state, wanted.samples, ranks)
    loaded = load(found, config, ranks)
    out = out or target.rundir.path / "evolution" / folder_name(found.step)
    losses = Losses(out, asked_of(wanted, found, training), ranks)
    mutable = Mutable(loaded.model, active_weights(loaded), wanted.mutation, ranks)
    told = _silent if ranks.rank else tell
    told(f"{config.run.name}, step {loaded.step:,}; children are judged on {training.told}")
    for line in [*(f"checkpoint skipped: {each}" for each in loaded.skipped), *training.lost]:
        told(line)
    if losses.known:
        told(f"{sum(child.number != PARENT for child in losses.known):,} children are known from before")
    members = KeptChildren(out, target, found, loaded, wanted, ranks)
    with shown_progress() if ranks.rank == 0 else contextlib.nullcontext(_no_progress) as progress:
        evolved = evolve(
            config, wanted, mutable, loaded, training, data, losses, ranks, progress, members.keep
        )  # fmt: skip
    manifest = members.write(config)
    for line in _lines(evolved, wanted, training, mutable):
        told(line)
    told(f"validation on {', '.join(data.locations)}: NLL in nats per {data.units[:-1]}")
    for who, loss in evolved.validation:
        told(f"  {who:<38}{loss:>9.4f}")
    told(f"members: {manifest}")
    return manifest


def active_weights(loaded: Loaded) -> dict[str, Tensor]:
    """Flat bool of the weights held here, of every layer that is kept dense with zeros."""
    elsewhere = topologies(loaded.model).keys() | single_topologies(loaded.model).keys()
    return {layer.name: layer.elements(layer.active) for layer in loaded.layers if layer.name not in elsewhere}


def _lines(evolved: Evolved, wanted: Wanted, training: NextSamples, mutable: Mutable) -> list[str]:
    """The losses of every generation, for people."""
    weights = sum(matrix.count for matrix in mutable.matrices)
    ends = [[mutable.mutation.places(Child(0, 0), matrix.count) for matrix in mutable.matrices]]
    moved = sum(last - first for first, last in ends[0])
    lines = [f"each child moves {moved:,} of {weights:,} active weights (sigma {wanted.mutation.sigma:g})"]
    for generation, best in enumerate(evolved.best):
        own = {child: loss for child, loss in evolved.losses.items() if child.generation == generation}
        parent = own.pop(Child(generation, PARENT))
        spread = sorted(own.values())
        lines.append(
            f"generation {generation + 1}, NLL on the training samples: parent {parent:.4f}; children "
            f"{spread[0]:.4f} to {spread[-1]:.4f}, {sum(loss < parent for loss in spread)} of {len(spread)} below it; "
            f"best: {', '.join(str(child.number) for child in best)}"
        )
    return lines


def _silent(line: str) -> None:
    return None


def _no_progress(what: str, done: int, total: int) -> None:
    return None
