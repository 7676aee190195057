"""Write one head of a ResNet run, with its trunk, as an ordinary network in the layout of timm:

    python launch/export.py runs/photos --head 0 --out head_0.pt                     its newest checkpoint
    python launch/export.py runs/edst/ensemble.json --member ticket_2 --out 2.pt     the head of a member
    python launch/export.py runs/photos/checkpoints/step_00002000 --head 1 --out head_1.pt --average

Needs one process, whatever number of ranks has saved the checkpoint. Exit codes as those of launch/pretrain.py:
docs/RUNDIR.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import Chosen, chosen_of
from nt_pretrain.evaluation.export import export, exportable
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import connect, leave, rank_of_launcher
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="RUN_OR_CHECKPOINT_OR_MANIFEST", help="what to write, e.g. runs/photos")
    parser.add_argument(
        "--head", type=int, metavar="M", help="number of the head, from 0, over all members or in --member"
    )
    parser.add_argument("--member", metavar="NAME", help="member of an ensemble; its only head, or --head of it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, e.g. head_0.pt")
    parser.add_argument(
        "--average", action="store_true", help="the moving average of the weights instead of these (train.ema_decay)"
    )
    return parser.parse_args(arguments)


def head_of(chosen: Chosen, head: int | None) -> int:
    """The head that is meant; where there is one only it need not be named.

    Raises:
        ConfigErrors: there are several and none is named.
    """
    if head is None and len(chosen.voices) > 1:
        listed = ", ".join(f"{at} {voice}" for at, voice in enumerate(chosen.voices))
        raise ConfigErrors([f"--head: one of {listed} must be named; a file holds one"])
    return head or 0


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    try:
        chosen = chosen_of(asked.target, ["run.device=cpu", "parallel.cpu_offload=false"], data=None, samples=0)
        chosen = chosen if asked.member is None else chosen.member(asked.member)
        head = head_of(chosen, asked.head)
        exportable(chosen, head, world=int(os.environ.get("WORLD_SIZE", "1")))
        export(
            chosen, connect(chosen.config), asked.out, lambda line: print(line, flush=True),
            head=head, average=asked.average,
        )  # fmt: skip
    except KeyboardInterrupt:
        return fail(130, "interrupted: nothing was written")
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=0)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))
    return ExitCode.FINISHED


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code == ExitCode.FINISHED)
