"""Starts real runs with torchrun and reads back what they left, for tests of whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from nt_pretrain.observe.rundir import RunDir
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/tiny.yaml"
Launched = subprocess.Popen[str] | warm.Started


def start(
    ranks: int,
    folder: Path,
    *overrides: str,
    script: str = "launch/pretrain.py",
    config: str = TINY,
    cold: bool = False,
) -> Launched:
    """Start ``torchrun launch/pretrain.py configs/tiny.yaml`` with output in FOLDER/console.log.

    Args:
        cold: load torch anew in each process, as a user's command does; see :mod:`tests.warm`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # One thread a rank: the order of additions in a kernel must not depend on the cores of the machine.
    arguments += [script, config, f"run.dir={folder.parent}", f"run.name={folder.name}"]
    arguments += ["run.threads_per_rank=1", *overrides]
    environment, path = os.environ | {"OMP_NUM_THREADS": "1"}, folder / "console.log"
    if not cold:
        return warm.start(arguments, cwd=ROOT, env=environment, out=path, err=path)
    with path.open("a") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment
        )


def finish(process: Launched, folder: Path, *, timeout: float = 200, expect: int = 0) -> None:
    """Wait for the end of ``process`` and check its exit code."""
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        raise AssertionError(f"no end within {timeout} s:\n{tail(folder)}") from None
    assert code == expect, f"exit code {code}:\n{tail(folder)}"


def tail(folder: Path) -> str:
    return "\n".join((folder / "console.log").read_text().splitlines()[-60:])


def wait_for_step(process: Launched, folder: Path, step: int, *, timeout: float = 120) -> None:
    """Wait until the run has logged ``step`` (with observe.log_every_steps=1)."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if last_step(folder) >= step:
            return
        assert process.poll() is None, f"ended before step {step}:\n{tail(folder)}"
        time.sleep(0.02)
    kill_tree(process)
    raise AssertionError(f"step {step} not reached within {timeout} s:\n{tail(folder)}")


def last_step(folder: Path) -> int:
    lines = training_lines(folder)
    return int(lines[-1]["step"]) if lines else 0


def training_lines(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that hold training losses."""
    path = RunDir(folder).metrics
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # being written
        if "train/loss" in values:
            lines.append(values)
    return lines


def losses(folder: Path) -> list[tuple[int, str, str]]:
    """(step, losses of all heads, gradient norm) of every logged step, exact to the bit."""
    return [
        (
            line["step"],
            " ".join(float(value).hex() for key, value in sorted(line.items()) if key.startswith("train/loss")),
            float(line["optim/grad_norm"]).hex(),
        )
        for line in training_lines(folder)
    ]


def digests(folder: Path) -> dict[int, str]:
    """Topology digest after each update; a step that was made twice must have had the same digest both times."""
    found: dict[int, str] = {}
    for line in RunDir(folder).events.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "topology":
            digest = event["facts"]["digest"]
            assert found.setdefault(event["step"], digest) == digest, f"step {event['step']}"
    return found


def final_tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint of ``step``: weights, moments, topology."""
    whole = folder / f"whole_{step}.pt"
    dcp_to_torch_save(RunDir(folder).checkpoints / f"step_{step:08d}", whole)
    return torch.load(whole, weights_only=True)  # type: ignore[no-any-return]


def assert_same_run(first: Path, second: Path, step: int) -> None:
    """Losses, topology digests and all tensors of the checkpoint of ``step`` are bit-identical."""
    assert losses(first) == losses(second)
    assert digests(first) == digests(second) and digests(first)
    here, there = final_tensors(first, step), final_tensors(second, step)
    assert here.keys() == there.keys()
    different = [name for name in here if not torch.equal(here[name], there[name])]
    assert not different


def workers(process: Launched) -> list[psutil.Process]:
    """The rank processes of a torchrun, in no particular order (without their reader processes)."""
    # torchrun makes each of them the leader of a session.
    return [child for child in psutil.Process(process.pid).children() if os.getsid(child.pid) == child.pid]


def kill_tree(process: Launched) -> None:
    """End a torchrun and everything it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        if member.is_running():
            member.kill()
    process.wait()
