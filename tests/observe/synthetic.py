"""A run directory filled with plausible metrics, for tests of what reads one."""

from __future__ import annotations

import math
from pathlib import Path

from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.record import Recorder
from nt_pretrain.observe.rundir import RunDir, Status

GROUPS = {"embedding": 0.97, "attention": 0.83, "ffn": 0.86, "output": 0.97}


def train_values(step: int, steps: int) -> dict[str, float]:
    loss = 4.2 + 4.1 * math.exp(-step / (0.18 * steps)) + 0.06 * math.sin(step * 1.7)
    values = {"train/loss": loss, "optim/lr": 1e-3, "optim/grad_norm": 0.8, "throughput/tokens_per_second": 5000.0}
    values |= {f"train/loss_head_{head}": loss + 0.05 * math.sin(step + 2 * head) for head in range(3)}
    values |= {"sparsity/density": 0.9, **{f"sparsity/density_{group}": value for group, value in GROUPS.items()}}
    return values | {"tokens/total": step * 8192.0, "time/hours": step / 9000}


def update_values(step: int, steps: int) -> dict[str, float]:
    rate = 0.005 + 0.495 * 0.5 * (1 + math.cos(math.pi * step / steps))
    turnovers = {f"sparsity/turnover_{group}": rate * (0.25 + 0.12 * index) for index, group in enumerate(GROUPS)}
    return {"sparsity/turnover": rate * 0.4, "sparsity/prune_rate": rate, **turnovers}


def validation_values(step: int, steps: int) -> dict[str, float]:
    loss = 4.45 + 3.8 * math.exp(-step / (0.18 * steps))
    heads = {f"validation/loss_head_{head}": loss + 0.04 * head for head in range(3)}
    heads |= {f"validation/perplexity_head_{head}": math.exp(loss + 0.04 * head) for head in range(3)}
    ensemble = loss - 0.08
    return heads | {
        "validation/loss_mean_head": loss + 0.04,
        "validation/loss_ensemble": ensemble,
        "validation/loss_ensemble_logit": ensemble + 0.01,
        "validation/perplexity_ensemble": math.exp(ensemble),
        "validation/unigram_perplexity": 430.0,
        "validation/disagreement": 0.21,
    }


def fill(path: Path, *, steps: int = 400, reached: int | None = None, resume_at: int | None = 200) -> RunDir:
    """Write metrics, events and a status; ``reached`` is the last step made (all of them unless given)."""
    rundir = RunDir(path)
    rundir.create()
    end = steps if reached is None else reached
    recorder = Recorder(rundir, start_step=0, tensorboard=False)
    recorder.event("start", 0, "new run", {"world": 2})
    for step in range(5, end + 1, 5):
        recorder.metrics(step, train_values(step, steps))
        if step % 20 == 0:
            recorder.metrics(step, update_values(step, steps))
            recorder.event("topology", step, "due", {"digest": "00"})
        if step % 50 == 0 or step == steps:
            recorder.metrics(step, validation_values(step, steps))
    if resume_at is not None:
        recorder.event("resume", resume_at, "from checkpoints/step_00000200", {"world": 2})
    recorder.close()
    done = end == steps
    rundir.write_status(
        Status(
            state="finished" if done else "stopped",
            step=end,
            total_steps=steps,
            exit_code=ExitCode.FINISHED if done else ExitCode.STOPPED,
            message="finished" if done else "SIGINT",
        )
    )
    return rundir
