"""Which checkpoint the words of a command line name, and the configuration it is measured with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.folders import candidates, step_of
from nt_pretrain.checkpoint.manifest import MANIFEST, STATE
from nt_pretrain.config.checks import problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.method_section import MethodSection
from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.observe.rundir import RunDir

MESH = ("replicate", "shard", "head", "tensor")


@dataclass(frozen=True)
class Target:
    """A run, and one checkpoint of it; None is its newest that is whole."""

    rundir: RunDir
    checkpoint: Path | None


def target_of(words: str) -> Target:
    """The run or checkpoint that ``words`` names: a run's folder, a checkpoint's, or a manifest.json.

    Raises:
        ConfigErrors: there is none; it names runs that are there.
        CheckpointError: a checkpoint lies outside of a run's folder.
    """
    path = Path(words)
    path = path.parent if path.name == MANIFEST else path
    if step_of(path.absolute()) is not None:
        path = path if len(path.parts) > 2 else path.absolute()  # typed inside of the run's folder
        if not path.is_dir():
            raise ConfigErrors([f"{path}: there is no such checkpoint; {_there_are(path.parent, 'step_*')}"])
        rundir = RunDir(path.parent.parent)
        if not rundir.config.is_file():
            raise CheckpointError(
                f"{path}: its run's {rundir.config.name} must lie at {rundir.config}: a checkpoint is read with the "
                "configuration of its run"
            )
        return Target(rundir, path)
    rundir = RunDir(path)
    if not rundir.config.is_file():
        what = "is not a run directory: it has no config.yaml" if path.is_dir() else "there is no such folder"
        raise ConfigErrors([f"{path}: {what}; {_there_are(path.parent, '*/config.yaml')}"])
    return Target(rundir, None)


def config_of(target: Target, overrides: Sequence[str], *, data: str | None, samples: int) -> Config:
    """The run's own configuration with ``overrides``, for measuring: all of the set, weights sharded over all ranks.

    Args:
        data: another prepared corpus than the run's.
        samples: the first so many sequences or pictures of the validation split; 0: all.

    Raises:
        ConfigErrors: an option is unknown, does not fit, or cannot be chosen here.
    """
    chosen = [each for each in overrides if each.split("=")[0] in {f"parallel.{axis}" for axis in MESH}]
    if chosen:
        raise ConfigErrors(
            [f"{each}: an evaluation shards over the ranks it is started on; leave it out" for each in chosen]
        )
    if any(each.startswith("eval.sequences=") for each in overrides):
        raise ConfigErrors(["eval.sequences: an evaluation measures the whole split; give --samples N for less"])
    config = load_config(target.rundir.config, list(overrides))
    if wrong := problems(config):
        raise ConfigErrors(wrong)
    config = _of_phase(target, config)
    parallel = dict.fromkeys(MESH, 1) | {
        "shard": 0, "compile": False, "prefetch": 0, "activation_checkpoint": "none", "reshard_after_forward": True,
        "batch_norm": "rank",
    }  # fmt: skip
    sections = {
        "parallel": config.parallel.model_copy(update=parallel),
        "eval": config.eval.model_copy(update={"sequences": samples}),
    }
    config = config.model_copy(update=sections)
    return config if data is None else of_other_data(config, data)


def _of_phase(target: Target, config: Config) -> Config:
    """What held in the phase of the run's method that the checkpoint lies in: another model, perhaps."""
    calendar = calendar_of(config)
    newest = candidates(target.rundir.checkpoints)[:1] if target.checkpoint is None else [target.checkpoint]
    begun = len(_state(newest[0]).get("begun", [])) if newest else 0
    # What does not belong to this method any more is told when the checkpoint is read.
    phase = calendar.phases[min(max(begun, 1), len(calendar.phases)) - 1]
    return phase.config.model_copy(update={"method": MethodSection()})


def _state(checkpoint: Path) -> dict[str, Any]:
    """Of a checkpoint whose files are not checked yet; empty where it cannot be read, which is told later."""
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def of_other_data(config: Config, path: str) -> Config:
    """The same with another corpus."""
    data = config.data.model_copy(update={"path": path, "sources": {}, "weights": {}, "curriculum": {}})
    return config.model_copy(update={"data": data})


def _there_are(folder: Path, pattern: str) -> str:
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    names = [str(each.parent if each.is_file() else each) for each in found]
    return f"there are: {', '.join(names[-8:])}" if names else f"there are none in {folder}"
