"""What those that speak cost, beside how good they are: parameters and operations, counted and executed.

Nothing is guessed: the training of a member whose beginnings lie elsewhere is not known, and a note says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.folders import candidates, step_of
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.evaluation.chosen import Chosen, Speaker
from nt_pretrain.evaluation.trunks import listed_at_home, trunks_read
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.curve import Mode, OnTrunks
from nt_pretrain.methods.manifest import Ensemble
from nt_pretrain.methods.phase import Clone, Part, Phase
from nt_pretrain.train.costs import Cost, cost_of, costs_of, trained_until

UNIT = "FLOPs; a multiply-add is two"


@dataclass(frozen=True)
class Trained:
    """Operations of a training.

    Attributes:
        whole: whether it began with a seed; else what it started from cost more.
        why: what is not counted, in words; "" where all is.
    """

    counted: int
    executed: int
    whole: bool
    why: str = ""


def costs_of_chosen(
    chosen: Chosen, steps: Sequence[int], *, shared: Collection[str], passes: int = 1
) -> dict[str, Any]:
    """Of every checkpoint that speaks and of all together (JSON).

    Args:
        steps: of the checkpoints.
        shared: names of the members whose heads read features that other members' forward passes leave: their
            parameters and inference are those of the head alone.
        passes: forward passes for one prediction (MC dropout).

    Raises:
        ConfigErrors: the configuration of the run that made the members cannot be read.
    """
    members, notes, trainings = {}, [], []
    for each, step in zip(chosen.speakers, steps, strict=True):
        made = _made(each)
        trained, name = _trained(each, made, step), each.name or chosen.home.path.absolute().name
        trainings.append(trained)
        alone = each.name in shared
        notes += [f"{name}: {line}" for line in _notes(each, trained, alone)]
        cost = _as_head(each, made) if alone else cost_of(Phase("whole", each.config))
        members[name] = _row(cost, passes, None if trained is None else (trained.counted, trained.executed))
    run = _run_that_made(chosen)
    if run is not None:
        ended = [each.step for each in [*run[1].others, *run[1].members] if "phase" in each.made]
        training: tuple[int, int] | None = trained_until(run[0], max(ended))
        notes += _given(run[0])
    else:
        training = _together(chosen, trainings)
        pairs = zip(members, trainings, strict=True)
        begun = [name for name, each in pairs if each is not None and not each.whole and not each.why]
        if begun:
            notes.append(f"{', '.join(begun)}: began from finished models, whose training is not counted")
    reference = run[0] if run is not None else _only_run(chosen)
    return {
        "unit": UNIT,
        "per": chosen.config.model.samples.removesuffix("s"),
        "passes": passes,
        "members": members,
        "ensemble": _sum(list(members.values()), training),
        "dense": None if reference is None else _dense(reference),
        "notes": notes,
    }


def read_alone(chosen: Chosen) -> set[str]:
    """Names of the members whose heads can read what other members' forward passes leave."""
    return {chosen.speakers[number].name for number in trunks_read(chosen)}


def steps_of(chosen: Chosen) -> list[int]:
    """Steps of the checkpoints that speak, without loading them; of a run the newest, 0 where it has none."""
    found = []
    for each in chosen.speakers:
        newest = [each.target.checkpoint] if each.target.checkpoint else candidates(each.target.rundir.checkpoints)[:1]
        found.append((step_of(newest[0].absolute()) or 0) if newest else 0)
    return found


def _notes(speaker: Speaker, trained: Trained | None, alone: bool) -> list[str]:
    voices = speaker.config.model.voices
    found = ["its head alone; the features come from another member's forward pass"] if alone else []
    found += ["its training is not known here"] if trained is None else []
    found += [trained.why] if trained is not None and trained.why else []
    return found + (
        [f"of all its {voices} heads, of which {len(speaker.heads)} speak"] if len(speaker.heads) < voices else []
    )


def _row(cost: Cost, passes: int, training: tuple[int, int] | None) -> dict[str, Any]:
    return {
        "parameters": {"total": cost.parameters.total, "active": cost.parameters.active},
        "inference": {"counted": cost.inference.active * passes, "executed": cost.inference_executed * passes},
        "training": None if training is None else {"counted": training[0], "executed": training[1]},
    }


def _sum(rows: list[dict[str, Any]], training: tuple[int, int] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        kind: {key: sum(row[kind][key] for row in rows) for key in rows[0][kind]}
        for kind in ("parameters", "inference")
    }
    return found | {"training": None if training is None else {"counted": training[0], "executed": training[1]}}


def _dense(config: Config) -> dict[str, Any]:
    costs = costs_of(config)
    return {"steps": costs.dense_steps} | _row(costs.dense, 1, (costs.dense.training.active, costs.dense.executed))


def _as_head(speaker: Speaker, made: dict[str, Any]) -> Cost:
    return cost_of(Phase("head", speaker.config, OnTrunks(tuple(Mode(name) for name in made.get("trunks", ())))))


def _made(speaker: Speaker) -> dict[str, Any]:
    """How a member was made: what the ensemble says, or else the one of the run that its folder lies in."""
    told = speaker.listed.made if speaker.listed is not None else {}
    if "from" in told:
        return told
    folder = speaker.target.rundir.path.resolve()
    home = folder.parent.parent
    listed = listed_at_home(speaker).values()
    return next((each.made for each in listed if (home / each.path).resolve() == folder), told)


def _trained(speaker: Speaker, made: dict[str, Any], step: int) -> Trained | None:
    """The training of a member, as far as it is known: of one that a phase has left that of its own phase, of a run
    that of all steps up to the checkpoint.
    """
    if "phase" in made:
        cost = _as_head(speaker, made) if "trunks" in made else cost_of(Phase("own", speaker.config))
        whole = made.get("from") == "its seed" and "teacher" not in made
        return Trained(cost.training.active, cost.executed, whole)
    if "from" in made:
        return None
    config = load_config(speaker.target.rundir.config, [])
    given = _given(config)
    counted, executed = trained_until(config, step)
    return Trained(counted, executed, not given, "; ".join(given))


def _given(config: Config) -> list[str]:
    """Finished models that a run was given, in words."""
    found: list[str] = []
    for phase in calendar_of(config):
        start = phase.start
        if isinstance(start, Clone | Part) and start.given:
            found.append(start.parent)
        if isinstance(start, OnTrunks):
            found += [mode.path for mode in start.modes if mode.path]
        if phase.curve is not None:
            found += [mode.path for mode in (phase.curve.first, phase.curve.last) if mode.path]
    return [f"the training of {path}, which the run was given, is not counted" for path in dict.fromkeys(found)]


def _run_that_made(chosen: Chosen) -> tuple[Config, Ensemble] | None:
    """The run whose own members speak; None for an ensemble that was put together, and for one checkpoint."""
    if chosen.manifest is None or not chosen.home.config.is_file():
        return None
    config, ensemble = load_config(chosen.home.config, []), chosen.manifest[1]
    is_own = config.method.name != "none" and ensemble.method.get("name") == config.method.name
    return (config, ensemble) if is_own and any("phase" in each.made for each in ensemble.members) else None


def _only_run(chosen: Chosen) -> Config | None:
    """The configuration of the run whose checkpoint speaks alone."""
    if chosen.manifest is not None:
        return None
    return load_config(chosen.speakers[0].target.rundir.config, [])


def _together(chosen: Chosen, known: Sequence[Trained | None]) -> tuple[int, int] | None:
    """Of all trainings; None where one is not known from its seed on. Checkpoints of one run share their beginnings."""
    longest: dict[Path, tuple[int, int]] = {}
    for each, trained in zip(chosen.speakers, known, strict=True):
        if trained is None or not trained.whole:
            return None
        place = each.target.rundir.path.resolve()
        longest[place] = max(longest.get(place, (0, 0)), (trained.counted, trained.executed))
    return sum(each[0] for each in longest.values()), sum(each[1] for each in longest.values())
