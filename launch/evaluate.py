"""Measure a trained ensemble:

    python launch/evaluate.py runs/demo                                      its newest checkpoint
    python launch/evaluate.py runs/demo/checkpoints/step_00002000            a checkpoint's folder or manifest.json
    python launch/evaluate.py runs/edst/ensemble.json                        the members of an ensemble, together
    torchrun --standalone --nproc-per-node 8 launch/evaluate.py runs/demo    the same, faster; any number of ranks
    python launch/evaluate.py runs/demo --data data/other --samples 1000     other data, or less of it

Prints a table of heads and ensembles, raw and calibrated, and writes evaluation.json and figures. What is measured, and
how: docs/EVALUATION.md. Exit codes as those of launch/pretrain.py: docs/RUNDIR.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.asked import Options
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.run import run
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import connect, device_problems, launcher_problems, leave, rank_of_launcher
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "target",
        metavar="RUN_OR_CHECKPOINT_OR_MANIFEST",
        help="what to measure, e.g. runs/demo",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the run"
    )
    parser.add_argument("--data", metavar="DIR", help="a prepared corpus to measure on instead of the run's own")
    parser.add_argument("--samples", type=count, default=0, metavar="N", help="the first N sequences or pictures only")
    parser.add_argument(
        "--calibrate",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="share of the samples that temperatures are fitted on; 0: no calibration (%(default)s)",
    )
    parser.add_argument("--ood", metavar="DIR", help="a prepared corpus of another distribution, to be told apart")
    parser.add_argument(
        "--robustness",
        metavar="all|NAME,...",
        help="also under corruptions or typing errors and with weights dropped, at five severities",
    )
    parser.add_argument(
        "--domain", action="append", default=[], metavar="DIR", help="also on this prepared corpus; may be given again"
    )
    parser.add_argument(
        "--average", action="store_true", help="the moving average of the weights instead of these (train.ema_decay)"
    )
    parser.add_argument(
        "--norms",
        type=count,
        default=0,
        metavar="N",
        help="pictures: first measure the running statistics of batch norms again, on N training pictures",
    )
    parser.add_argument(
        "--dropout", type=share, metavar="RATE", help="MC dropout: every pass with other hidden units dropped at RATE"
    )
    parser.add_argument("--passes", type=count, default=8, metavar="T", help="with --dropout (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: evaluation/step_N in the run's folder")
    return parser.parse_intermixed_args(arguments)


def count(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def share(text: str) -> float:
    """A number from 0 to below 1."""
    number = float(text)
    if not 0.0 <= number < 1.0:
        raise ValueError(text)
    return number


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    options = Options(
        out=asked.out, data=asked.data, share=asked.calibrate, foreign=asked.ood, average=asked.average,
        harms=asked.robustness, domains=tuple(asked.domain), norms=asked.norms,
        dropout=None if asked.dropout is None else (asked.dropout, asked.passes),
    )  # fmt: skip
    timeout = 0
    try:
        chosen = chosen_of(asked.target, asked.overrides, data=asked.data, samples=asked.samples)
        config = chosen.config
        if wrong := launcher_problems() + device_problems(config):
            raise ConfigErrors(wrong)
        timeout = config.parallel.first_timeout_seconds
        run(chosen, options, connect(config), lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        return fail(130, "interrupted: nothing more was written")
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=timeout)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))
    if rank_of_launcher() == 0:
        print(f"next: python launch/report.py {chosen.home.path}   # the curves of its training")
    return ExitCode.FINISHED


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code == ExitCode.FINISHED)
