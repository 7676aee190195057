"""Improve a trained ensemble without gradients: children that differ from it in a random few weights, the best kept.

    python launch/evolve.py runs/demo                                           40 children, the best 8 are members
    torchrun --standalone --nproc-per-node 8 launch/evolve.py runs/big          the same children, faster
    python launch/evolve.py runs/demo --children 20 --sigma 0.1 --density 0.01 --generations 3

Children are judged on training samples; the validation split only measures what was kept. A second call goes on where
the first was killed. Writes the kept children as members and ensemble.json. docs/EVOLUTION.md says what to expect. Exit
codes as those of launch/pretrain.py: docs/RUNDIR.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import one_of
from nt_pretrain.evaluation.evolution import run
from nt_pretrain.evaluation.evolve import Wanted, wanted_problems
from nt_pretrain.evaluation.target import config_of
from nt_pretrain.methods.mutation import Mutation
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import connect, device_problems, launcher_problems, leave, rank_of_launcher
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="RUN_OR_CHECKPOINT_OR_MANIFEST", help="the parent, e.g. runs/demo")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the run"
    )
    parser.add_argument("--children", type=int, default=40, metavar="N", help="of a generation (%(default)s)")
    parser.add_argument(
        "--sigma", type=float, default=0.3, metavar="S",
        help="deviation of the noise, in units of each matrix's root mean square (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--density", type=float, default=0.1, metavar="D", help="share of the weights that a child moves (%(default)s)"
    )
    parser.add_argument(
        "--scheme", choices=["dynamic", "static"], default="dynamic",
        help="dynamic: other weights for every child; static: parts that are divided once (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=8, metavar="M", help="children that are kept (%(default)s)")
    parser.add_argument(
        "--generations", type=int, default=1, metavar="G",
        help="each after the first has the mean of the kept as its parent (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=256, metavar="N", help="training samples to judge children on (%(default)s)"
    )
    parser.add_argument(
        "--validation", type=int, default=0, metavar="N", help="validation samples, the first N; 0: all (%(default)s)"
    )
    parser.add_argument("--key", type=int, default=0, help="of all random numbers (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: evolution/step_N in the run's folder")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    mutation = Mutation(asked.key, asked.sigma, asked.density, asked.scheme)
    wanted = Wanted(mutation, asked.children, asked.top, asked.generations, asked.samples)
    timeout = 0
    try:
        wrong = wanted_problems(wanted)
        wrong += [f"--validation {asked.validation}: at least 0"] if asked.validation < 0 else []
        if wrong:
            raise ConfigErrors(wrong)
        target = one_of(asked.target)
        config = config_of(target, asked.overrides, data=None, samples=asked.validation)
        if wrong := launcher_problems() + device_problems(config):
            raise ConfigErrors(wrong)
        timeout = config.parallel.first_timeout_seconds
        manifest = run(target, config, wanted, connect(config), lambda line: print(line, flush=True), out=asked.out)
    except KeyboardInterrupt:
        return fail(130, "interrupted: the same command goes on behind the children that are finished")
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=timeout)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))
    if rank_of_launcher() == 0:
        print(f"next: python launch/evaluate.py {manifest}   # all measures of the ensemble")
    return ExitCode.FINISHED


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code == ExitCode.FINISHED)
