"""How a run goes on from a checkpoint, and the words at its beginning and end."""

from __future__ import annotations

from typing import Any

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import Found, load_tensors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.data.position import Position
from nt_pretrain.methods.manifest import NAME
from nt_pretrain.methods.phase import Calendar
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.state import TrainState


def resume(
    state: TrainState, found: Found, config: Config, wanted: dict[str, Any], ranks: Ranks, *, annealing: bool = False
) -> Position:
    """Read the checkpoint into ``state``; returns the data position after it.

    An average of the weights that the checkpoint does not have (``train.ema_decay`` is new) starts from its weights.

    Args:
        annealing: weights outside of the topology go on being trained.

    Raises:
        CheckpointError: it is another model's or tokenizer's, or what was read is not what was saved.
    """
    refuse_other_model(found, wanted)
    tensors = state.checkpoint_tensors()
    starting = _starts_averaging(state, found)
    if starting:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("ema.")}
    load_tensors(found.path, tensors, group=ranks.control)
    if starting and state.average is not None:
        state.average.restart()
    try:
        state.restore(found.state, ranks)
        position = Position.from_json(found.state["position"])
        saved_digest = found.state["topology_digest"]
    except KeyError as error:
        raise CheckpointError(
            f"{found.path} was written by another version of this program: its state lacks {error}. Start a new run "
            "with another run.name, or go on with that version"
        ) from None
    if config.sparsity.grown_moments != "warm" and not annealing:
        state.forget_inactive_moments()
    digest = state.digest(ranks)
    if digest != saved_digest:
        raise CheckpointError(f"{found.path}: topology {digest} was read, {saved_digest} was saved")
    return position


def refuse_other_model(found: Found, wanted: dict[str, Any]) -> None:
    """Compare what a checkpoint says of itself with ``wanted``, the identity of the run that would read it.

    Raises:
        CheckpointError: it is another model's or tokenizer's; with every difference.
    """
    # Checkpoints of versions that knew AdamW only do not name it.
    identity = {"optimizer": {"algorithm": "adamw"}} | found.identity
    # Nor do those of versions without an option say anything about it.
    if isinstance(identity.get("model"), dict):
        identity["model"] = ModelSection().model_dump(mode="json") | identity["model"]
    # Likewise of versions that knew one backend and one balance only.
    if isinstance(identity.get("sparsity"), dict):
        identity["sparsity"] = {"backend": "masked", "balance": "layer", "stripped": False} | identity["sparsity"]
    if not all(isinstance(identity.get(key), type(value)) for key, value in wanted.items()):
        raise CheckpointError(
            f"{found.path} was written by another version of this program: it says of itself {sorted(found.identity)}, "
            f"this version needs {sorted(wanted)}. Start a new run with another run.name, or go on with that version"
        )
    differences = [
        f"  {section}.{key}: checkpoint {identity[section].get(key)!r}, this run {value!r}"
        for section, here in wanted.items()
        if isinstance(here, dict)
        for key, value in here.items()
        if identity[section].get(key) != value
    ]
    for key in ("tokenizer", "weights"):
        if identity[key] != wanted[key]:
            differences.append(f"  {key}: checkpoint {identity[key]}, this run {wanted[key]}")
    if differences:
        raise CheckpointError(
            f"{found.path} belongs to another model:\n" + "\n".join(differences) + "\n"
            "Set these back, or start a new run with another run.name."
        )


def first_line(rundir: RunDir, state: TrainState, found: Found | None, config: Config) -> str:
    """From where the run starts and which options changed since its last start."""
    if found is None:
        return f"starting {rundir.path} from step {state.step:,}"
    text = f"resuming {rundir.path} from step {state.step:,} ({found.path.name})"
    if rundir.config.exists():
        before, now = load_config(rundir.config, []).model_dump(), config.model_dump()
        changes = [
            f"{section}.{key} {before[section].get(key)} -> {value}"
            for section, fields in now.items()
            for key, value in fields.items()
            if before[section].get(key) != value
        ]
        text += "; changed since: " + ", ".join(changes) if changes else "; configuration unchanged"
    if _starts_averaging(state, found):
        text += "; train.ema_decay: the average starts from these weights, the checkpoint has none"
    return text


def _starts_averaging(state: TrainState, found: Found) -> bool:
    return state.average is not None and not found.state.get("averaged", False)


def how_to_go_on(config: Config, calendar: Calendar, command: str) -> str:
    """Last words of a finished run."""
    run = f"{config.run.dir}/{config.run.name}"
    lines = [f"{run} is finished: {calendar.total_steps:,} steps. What next:"]
    lines.append(f"  picture and summary   python launch/report.py {run}")
    lines.append(f"  curves                tensorboard --logdir {run}/tensorboard")
    if config.method.name != "none":
        lines.append(f"  measure the ensemble  python launch/evaluate.py {run}/{NAME}")
    if len(calendar.phases) == 1:
        # Phases that are over would have been longer.
        again = " ".join(word for word in command.split(" ") if not word.startswith("train.steps="))
        lines.append(f"  train further         {again} train.steps={config.train.steps * 2}")
    return "\n".join(lines)
