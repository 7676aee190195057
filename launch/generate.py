"""Write text with a trained ensemble:

    python launch/generate.py runs/demo "In the beginning"                     its newest checkpoint
    python launch/generate.py runs/demo/checkpoints/step_00000200 "And God"    one of them
    python launch/generate.py runs/edst/ensemble.json "In the beginning"       the members of an ensemble together
    python launch/generate.py runs/demo "In the beginning" --head 0            one head alone
    python launch/generate.py runs/demo "In the beginning" --temperature 0     always the most likely token

The text goes to standard output while it is written, everything else to standard error. The same command writes the
same text; another --seed another one. Needs one process, whatever number of ranks has saved the checkpoint. Exit codes
as those of launch/pretrain.py: docs/RUNDIR.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.generate import Wanted, check, run
from nt_pretrain.evaluation.sampling import Sampling
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import connect, device_problems, leave, rank_of_launcher
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="RUN_OR_CHECKPOINT_OR_MANIFEST", help="what writes, e.g. runs/demo")
    parser.add_argument("prompt", metavar="PROMPT", help='how the text begins; "" for a new document')
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the run"
    )
    parser.add_argument("--tokens", type=count, default=100, metavar="N", help="write N tokens at most (%(default)s)")
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.8,
        metavar="T",
        help="above 1 bolder, below 1 more careful, 0: always the most likely token (%(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=share,
        default=0.95,
        metavar="P",
        help="draw from the most likely tokens that make up this share; 1: from all (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another text (%(default)s)")
    parser.add_argument(
        "--head",
        type=int,
        metavar="K",
        help="head K alone, from 0, counted over all members; without it the ensemble writes",
    )
    parser.add_argument(
        "--average", action="store_true", help="the moving average of the weights instead of these (train.ema_decay)"
    )
    return parser.parse_intermixed_args(arguments)


def count(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def temperature(text: str) -> float:
    """A number from 0 to 100."""
    number = float(text)
    if not 0.0 <= number <= 100.0:
        raise ValueError(text)
    return number


def share(text: str) -> float:
    """A number above 0, up to 1."""
    number = float(text)
    if not 0.0 < number <= 1.0:
        raise ValueError(text)
    return number


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    wanted = Wanted(
        asked.prompt, asked.tokens, Sampling(asked.temperature, asked.top_p, asked.seed), asked.head, asked.average
    )
    try:
        overrides = ["parallel.cpu_offload=false", *asked.overrides]
        chosen = chosen_of(asked.target, overrides, data=None, samples=0)
        config = chosen.config
        check(chosen, wanted, world=int(os.environ.get("WORLD_SIZE", "1")))
        if wrong := device_problems(config):
            raise ConfigErrors(wrong)
        run(chosen, wanted, connect(config), _write, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(flush=True)
        return fail(130, "interrupted")
    except BrokenPipeError:
        # Nobody reads on (as behind `| head`). Without this, python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail(1, "the text was not read to its end")
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=0)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))
    more, why = (f"--seed {asked.seed + 1}", "another text") if asked.temperature else ("--temperature 0.8", "bolder")
    again = f"python launch/generate.py {shlex.quote(asked.target)} {shlex.quote(asked.prompt)} {more}"
    print(f"next: {again}   # {why}", file=sys.stderr)
    return ExitCode.FINISHED


def _write(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code == ExitCode.FINISHED)
