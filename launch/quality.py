"""Compare methods on one text: python launch/quality.py CONFIG [--compare methods] [--seeds 0 1] [--at-once 2]
                                                             [section.key=value ...]

Trains, with the options of CONFIG (a NeuroTrails run), a single dense model, a TreeNet, a deep ensemble and NeuroTrails
itself, each seed, twice: at equal steps, and at equal executed FLOPs (dense matrix products; masks save none). Or,
with --compare units, the sparse heads of CONFIG with single weights and with blocks of 16, 32 and 64, dense ones beside
them, at equal steps. Every run is one process on one core; --at-once of them run side by side. Runs that are finished
are not repeated, so the same command goes on after an interruption. Prints a table in Markdown; docs/QUALITY.md holds
both.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from nt_pretrain.config.blocks import dense_options
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.train.plan import make_plan

BLOCKS = ["sparsity.backend=block", "sparsity.balance=line"]
METHODS = {
    "single dense": ["model.heads=1", "model.blocks_in_head=0", "sparsity.density=1.0"],
    "TreeNet": ["sparsity.density=1.0"],
    "deep ensemble": ["model.blocks_in_head={layers}", "sparsity.density=1.0"],
    "NeuroTrails": [],
}
UNITS = {
    "single weights": ["sparsity.unit=1"],
    **{f"blocks of {unit}": [*BLOCKS, f"sparsity.unit={unit}"] for unit in (16, 32, 64)},
    "blocks of 64, random growth": [*BLOCKS, "sparsity.unit=64", "sparsity.grow=random"],
    "blocks of 64, fixed": [*BLOCKS, "sparsity.unit=64", "sparsity.update_every=1000000"],
    "dense heads": ["sparsity.density=1.0"],
}


@dataclass(frozen=True)
class Job:
    """One training run of the comparison; ``source`` is a checksum of the configuration file."""

    method: str
    budget: str
    seed: int
    steps: int
    overrides: list[str]
    source: int

    @property
    def name(self) -> str:
        # Other options are another run: a finished one must not stand in for it.
        options = zlib.crc32(" ".join(self.overrides).encode(), self.source)
        method = self.method.lower().replace(",", "").replace(" ", "-")
        return f"quality-{method}-{self.steps}-seed{self.seed}-{options:08x}"


def jobs_of_units(path: str, overrides: list[str], seeds: list[int]) -> list[Job]:
    """All runs of the comparison of units, at equal steps."""
    steps, source = load_config(path, overrides).total_steps, zlib.crc32(Path(path).read_bytes())
    return [
        Job(method, "steps", seed, steps, [*overrides, *options], source)
        for method, options in UNITS.items()
        for seed in seeds
    ]


def jobs(path: str, overrides: list[str], seeds: list[int]) -> list[Job]:
    """All runs. A method whose step costs as much as NeuroTrails' needs no second run at equal FLOPs."""
    base = load_config(path, overrides)
    source = zlib.crc32(Path(path).read_bytes())
    flops = make_plan(base, 1).flops_per_sample_dense
    found = []
    for method, options in METHODS.items():
        dense = dense_options(base)[1:] if "sparsity.density=1.0" in options else []
        own = [*overrides, *(option.format(layers=base.model.layers) for option in options), *dense]
        cost = make_plan(load_config(path, own), 1).flops_per_sample_dense
        equal = round(base.total_steps * flops / cost)
        for seed in seeds:
            found.append(Job(method, "steps", seed, base.total_steps, own, source))
            found.append(Job(method, "FLOPs", seed, equal, own, source))
    return found


def command(path: str, job: Job, base: Config) -> list[str]:
    warmup = round(base.warmup_steps * job.steps / base.total_steps)
    options = [f"run.name={job.name}", f"run.seed={job.seed}", f"train.steps={job.steps}"]
    options += ["train.steps_over_density=false"]
    options += [f"optim.warmup_steps={warmup}", "run.threads_per_rank=1"]
    return [sys.executable, "launch/pretrain.py", path, *job.overrides, *options]


def run_all(path: str, wanted: list[Job], base: Config, at_once: int) -> None:
    """Run what is not finished, ``at_once`` side by side, longest first."""
    unique = {job.name: job for job in wanted}
    waiting = sorted(unique.values(), key=lambda job: (-job.steps, job.seed))
    running: dict[str, subprocess.Popen[bytes]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            folder = Path(base.run.dir) / job.name
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "console.log").open("ab") as log:
                running[job.name] = subprocess.Popen(
                    command(path, job, base), stdout=log, stderr=subprocess.STDOUT, env=environment
                )
            print(f"started {job.name}; {len(waiting)} waiting", flush=True)
        time.sleep(1)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                print(f"{name} ended with exit code {process.returncode}", flush=True)
                if process.returncode:
                    waiting.clear()
    failed = [name for name in unique if last_validation(base, name) is None]
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}; see {base.run.dir}/NAME/console.log. The same command goes on.")


def last_validation(base: Config, name: str) -> dict[str, float] | None:
    """The last validation of a finished run."""
    rundir = RunDir(Path(base.run.dir) / name)
    status = rundir.read_status()
    if status is None or status.state != "finished":
        return None
    lines = [line for line in read_lines(rundir.metrics) if "validation/loss_ensemble" in line]
    return lines[-1] if lines else None


def table(wanted: list[Job], path: str, base: Config) -> str:
    """Markdown: for each method and budget means over seeds, with the range."""
    rows = [
        "| budget | method | steps | active parameters | TFLOP | head perplexity | ensemble | disagreement |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in wanted:
        groups.setdefault((job.budget, job.method), []).append(job)
    for budget, method in sorted(groups, key=lambda key: key[0] != "steps"):
        runs = groups[budget, method]
        plan = make_plan(load_config(path, [*runs[0].overrides, f"train.steps={runs[0].steps}"]), 1)
        values = [found for job in runs if (found := last_validation(base, job.name))]
        cells = [budget, method, f"{runs[0].steps:,}", f"{plan.accounts.all.active:,}"]
        cells.append(f"{plan.flops_per_sample_dense * plan.samples_per_step * runs[0].steps / 1e12:.1f}")
        for key, exponential in (("loss_mean_head", True), ("loss_ensemble", True), ("disagreement", False)):
            numbers = [float(value[f"validation/{key}"]) for value in values if f"validation/{key}" in value]
            cells.append(spread([math.exp(n) for n in numbers] if exponential else numbers))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def spread(numbers: list[float]) -> str:
    if not numbers:
        return "-"
    digits = 2 if max(numbers) > 2 else 3
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--compare", choices=["methods", "units"], default="methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    base = load_config(options.config, options.overrides)
    listed = jobs if options.compare == "methods" else jobs_of_units
    wanted = listed(options.config, options.overrides, options.seeds)
    run_all(options.config, wanted, base, options.at_once)
    print(table(wanted, options.config, base))
    print(f"curves of all runs: tensorboard --logdir {base.run.dir}")


if __name__ == "__main__":
    main()
