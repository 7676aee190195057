"""Whole runs side by side: python launch/bench_run.py CONFIG.yaml [--rounds 2] [--steps 13] [section.key=value ...]

Trains, each time from the start and through launch/pretrain.py with data, optimizer and topology updates, the sparse
ensemble of CONFIG with masks, with only its active blocks, with only its active single weights, the dense ensemble of
the same shape, and one dense model. Rounds run all of them in turn, every second one in reverse order. Prints a table
of tokens a second, with topology updates as often as CONFIG asks for them, and their share of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from nt_pretrain.config.load import load_config
from nt_pretrain.observe.history import read_lines, series
from nt_pretrain.observe.rundir import RunDir

EVERY, WARM = 4, 3
"""Topology updates are timed this often, and the first steps are not."""

LINES = ["sparsity.balance=line"]
WEIGHTS = ["sparsity.balance=layer", "sparsity.unit=1"]
VARIANTS = {
    "masks": ["sparsity.backend=masked", *LINES],
    "blocks": ["sparsity.backend=block", *LINES],
    "single weights": ["sparsity.backend=block", *WEIGHTS],
    "dense ensemble": ["sparsity.density=1", "sparsity.backend=masked", *WEIGHTS],
    "one dense model": ["sparsity.density=1", "sparsity.backend=masked", *WEIGHTS, "model.heads=1"],
}


@dataclass
class Seconds:
    """Of steps that update topologies and of those that do not, of all rounds; peak memory in bytes."""

    plain: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def per_step(self, every: int) -> float:
        """Median, with an update every ``every`` steps."""
        return statistics.median(self.plain) * (1 + self.share(every))

    def share(self, every: int) -> float:
        """What updates every ``every`` steps add, as a share of the steps without."""
        if not self.update:
            return 0.0
        return max(0.0, statistics.median(self.update) / statistics.median(self.plain) - 1) / every


def train(config: str, options: list[str], folder: Path, steps: int) -> Seconds:
    """One run; its seconds by kind of step.

    Raises:
        SystemExit: it failed; its output is printed.
    """
    short = [f"train.steps={steps}", f"sparsity.update_every={EVERY}", "optim.warmup_steps=1", "eval.every_steps=0"]
    quiet = [
        "eval.sequences=8",
        "observe.log_every_steps=1",
        "checkpoint.save_every_steps=0",
        "observe.tensorboard=false",
    ]
    command = [
        sys.executable,
        "launch/pretrain.py",
        config,
        *options,
        *short,
        *quiet,
        f"run.dir={folder}",
        "run.name=run",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout[-3000:]}")
    rows = read_lines(RunDir(folder / "run").metrics)
    found = Seconds(memory=[max(series(rows, "memory/peak_bytes")[1])])
    for step, seconds in zip(*series(rows, "time/step_seconds"), strict=True):
        if step > WARM:
            (found.update if step % EVERY == 0 else found.plain).append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--json", type=Path, help="also write all timings to this file")
    options = parser.parse_intermixed_args()
    base = load_config(options.config, options.overrides)
    times = {name: Seconds() for name in VARIANTS}
    for number in range(options.rounds):
        for name in list(VARIANTS) if number % 2 == 0 else list(reversed(VARIANTS)):
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="bench_run_") as folder:
                taken = train(options.config, [*options.overrides, *VARIANTS[name]], Path(folder), options.steps)
            for kind in ("plain", "update", "memory"):
                getattr(times[name], kind).extend(getattr(taken, kind))
    tokens, every = base.train.global_batch * base.data.sequence_length, base.sparsity.update_every
    print(f"{tokens:,} tokens a step, topology updates every {every} steps; medians of {options.rounds} rounds")
    print("| | step, s (least to largest) | tokens/s | of one dense model | of masks | updates | peak memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    one, masks = times["one dense model"].per_step(every), times["masks"].per_step(every)
    for name, each in times.items():
        step = each.per_step(every)
        updates = f"{each.share(every):.2%}" if "dense" not in name else "-"
        print(
            f"| {name} | {step:.2f} ({min(each.plain):.2f} to {max(each.plain):.2f}) | {tokens / step:,.0f} | "
            f"{one / step:.2f} | {masks / step:.2f} | {updates} | {max(each.memory) / 1e9:.2f} GB |"
        )
    if options.json:
        options.json.write_text(json.dumps({name: vars(each) for name, each in times.items()}, indent=1) + "\n")
    print("figures of the reference machine: docs/PERFORMANCE.md")


if __name__ == "__main__":
    main()
