"""Whole runs of methods on real ranks, started by fork, killed by SIGKILL and started again; and what they left."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from nt_pretrain.config.checks import problems
from nt_pretrain.config.load import load_config
from nt_pretrain.methods.manifest import NAME, Ensemble, read_ensemble
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.run import run
from tests.gloo import RanksFailed, run_ranks
from tests.train.launches import losses

SMALL = [
    "train.steps=24", "train.global_batch=4", "sparsity.update_every=4", "optim.warmup_steps=2", "eval.sequences=4",
    "eval.every_steps=0", "eval.unigram_tokens=0", "eval.figures=false", "checkpoint.save_every_steps=3",
    "checkpoint.asynchronous=false", "data.workers=0", "observe.log_every_steps=1", "observe.tensorboard=false",
    "run.threads_per_rank=1", "model.heads=1", "model.blocks_in_head=0", "sparsity.drop=magnitude",
]  # fmt: skip


def train(folder: Path, overrides: list[str], *, ranks: int = 2, config: str = "configs/tiny.yaml") -> None:
    """Train a run to its end."""
    assert run_ranks(_rank, ranks, config, _all(folder, overrides), 0, timeout=200) == [0] * ranks


def train_with_a_kill(
    folder: Path, overrides: list[str], at: int, *, ranks: int = 2, config: str = "configs/tiny.yaml"
) -> int:
    """The same, but every rank dies by SIGKILL after step ``at``; returns the step it went on from."""
    try:
        run_ranks(_rank, ranks, config, _all(folder, overrides), at, timeout=200)
        raise AssertionError(f"nobody died after step {at}")
    except RanksFailed as error:
        assert "SIGKILL" in str(error), error
    train(folder, overrides, ranks=ranks, config=config)
    events = [line for line in read_lines(RunDir(folder).events) if line["kind"] == "resume"]
    assert len(events) == 1, "it went on from a checkpoint"
    return int(events[0]["step"])


def die_amid(folder: Path, overrides: list[str], watched: Path, at: int) -> None:
    """Every rank dies by SIGKILL after step ``at`` of the metrics ``watched``."""
    try:
        run_ranks(_rank, 2, "configs/tiny.yaml", _all(folder, overrides), at, watched, timeout=200)
        raise AssertionError(f"nobody died after step {at}")
    except RanksFailed as error:
        assert "SIGKILL" in str(error), error


def train_with_kills(
    folder: Path, overrides: list[str], at: list[int], *, config: str = "configs/tiny.yaml"
) -> list[int]:
    """The same with several kills, one after the other; returns the steps it went on from."""
    for step in at:
        try:
            run_ranks(_rank, 2, config, _all(folder, overrides), step, timeout=200)
            raise AssertionError(f"nobody died after step {step}")
        except RanksFailed as error:
            assert "SIGKILL" in str(error), error
    train(folder, overrides, config=config)
    return [int(line["step"]) for line in read_lines(RunDir(folder).events) if line["kind"] == "resume"]


def manifest(folder: Path) -> Ensemble:
    return read_ensemble(folder / NAME)


def member(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights (model.NAME) and topology (active.NAME) of a member."""
    found = next(each for each in [*manifest(folder).members, *manifest(folder).others] if each.name == name)
    return tensors(RunDir(folder / found.path).checkpoints, found.step)


def tensors(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    whole = checkpoints / "whole.pt"
    dcp_to_torch_save(checkpoints / f"step_{step:08d}", whole)
    found: dict[str, Tensor] = torch.load(whole, weights_only=True)
    whole.unlink()
    return found


def topology(folder: Path, name: str) -> dict[str, Tensor]:
    """Which weights of a member are active, by layer."""
    found = member(folder, name)
    return {key.removeprefix("active."): x.bool() for key, x in found.items() if key.startswith("active.")}


def outside(tensors: dict[str, Tensor]) -> int:
    """Numbers that are not 0, of weights outside of the topology, their moments and averages."""
    flags = {key.removeprefix("active."): x.bool() for key, x in tensors.items() if key.startswith("active.")}
    held = [(x, flags[key.split(".", 1)[1]]) for key, x in tensors.items() if key.split(".", 1)[1] in flags]
    return sum(int(x[~active].count_nonzero()) for x, active in held if x.is_floating_point())


def assert_same_ensembles(one: Path, other: Path) -> None:
    """Members, losses and validations are the same to the bit."""
    assert losses(one) == losses(other)
    assert _validations(one) == _validations(other) and _validations(one)
    first, second = manifest(one), manifest(other)
    assert [each.name for each in first.members] == [each.name for each in second.members]
    for each in [*first.members, *first.others]:
        here, there = member(one, each.name), member(other, each.name)
        assert here.keys() == there.keys()
        assert not [name for name in here if not torch.equal(here[name], there[name])], each.name


def _validations(folder: Path) -> list[tuple[int, float]]:
    lines = read_lines(RunDir(folder).metrics)
    return [(line["step"], line["validation/loss_ensemble"]) for line in lines if "validation/loss_ensemble" in line]


def _all(folder: Path, overrides: list[str]) -> list[str]:
    return [*SMALL, *overrides, f"run.dir={folder.parent}", f"run.name={folder.name}"]


def _rank(rank: int, world: int, path: str, overrides: list[str], kill_after: int, watched: Path | None = None) -> int:
    config = load_config(path, overrides)
    assert not (wrong := problems(config, world_size=world)), wrong
    if kill_after:
        log = watched or RunDir(f"{config.run.dir}/{config.run.name}").metrics
        threading.Thread(target=_die_after, args=(log, kill_after), daemon=True).start()
    return int(run(config, "the same command", connect(config)))


def _die_after(metrics: Path, step: int) -> None:
    while True:
        text = metrics.read_text() if metrics.exists() else ""
        steps: list[Any] = re.findall(r'"step": ?(\d+)', text)
        if steps and int(steps[-1]) >= step:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)
