"""Put an ensemble together from finished runs, their members or checkpoints, wherever they were trained:

    python launch/ensemble.py runs/three runs/seed0 runs/seed1 runs/seed2      the newest checkpoint of each run
    python launch/ensemble.py runs/two runs/a/checkpoints/step_00002000 runs/b/members/ticket_1
    python launch/ensemble.py runs/best runs/evolved --top 8 --by nll          the best of an ensemble's members

writes OUT/ensemble.json, which launch/evaluate.py, generate.py, export.py and report.py take like a run. Members stay
where they are; their paths are kept relative to OUT. Exit codes as those of launch/pretrain.py: docs/RUNDIR.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.assemble import gathered
from nt_pretrain.evaluation.best import best_of
from nt_pretrain.evaluation.chosen import Chosen
from nt_pretrain.evaluation.target import of_other_data
from nt_pretrain.methods.manifest import NAME, Ensemble, write_ensemble
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.progress import shown_progress
from nt_pretrain.parallel.mesh import connect, device_problems, launcher_problems, leave, rank_of_launcher
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write ensemble.json into")
    parser.add_argument("members", metavar="MEMBER", nargs="+", help="a run, a member, a checkpoint, or an ensemble")
    parser.add_argument(
        "--combiner", choices=("probability", "logit"), default="probability",
        help="mean of probabilities or of logits; both are always reported (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--top", type=int, metavar="N", help="keep the N best by validation data")
    parser.add_argument("--by", choices=("nll", "accuracy"), default="nll", help="with --top: measure (%(default)s)")
    parser.add_argument(
        "--samples", type=count, default=1000, metavar="N",
        help="with --top: sequences or pictures to measure on; 0: all (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="with --top: a prepared corpus instead of the members' own")
    parser.add_argument("--replace", action="store_true", help="write over an ensemble.json that is there")
    return parser.parse_args(arguments)


def count(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    out: Path = asked.out.parent if asked.out.name == NAME else asked.out
    try:
        if (out / NAME).exists() and not asked.replace:
            raise ConfigErrors([f"{out / NAME} is there already; give another OUT, or --replace"])
        chosen = gathered(asked.members, out, _tell)
        method: dict[str, Any] = {"name": "together"}
        if asked.top is not None:
            chosen, method = _best(chosen, asked)
        if rank_of_launcher() == 0:
            _write(out, chosen, method, asked)
    except KeyboardInterrupt:
        return fail(130, "interrupted: nothing was written")
    except OSError as error:
        return fail(1, f"cannot write {out / NAME}: {error}")
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=0)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))
    return ExitCode.FINISHED


def _best(chosen: Chosen, asked: argparse.Namespace) -> tuple[Chosen, dict[str, Any]]:
    config = chosen.config
    if not 1 <= asked.top <= len(chosen.speakers):
        raise ConfigErrors([f"--top {asked.top}: there are {len(chosen.speakers)} members"])
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"sequences": asked.samples})})
    config = config if asked.data is None else of_other_data(config, asked.data)
    if wrong := launcher_problems() + device_problems(config):
        raise ConfigErrors(wrong)
    ranks = connect(config)
    with shown_progress() as progress:
        found, values, samples = best_of(
            chosen, config, asked.top, asked.by, ranks, lambda done, total: progress("measuring members", done, total)
        )
    for name, value in sorted(values.items(), key=lambda each: each[1], reverse=asked.by == "accuracy"):
        kept = "kept" if name in {each.name for each in found.speakers} else "left out"
        _tell(f"  {name:<24} {asked.by} {value:.4f}  {kept}")
    units = config.model.data if config.model.classifies else "targets"
    _tell(
        f"the best {asked.top} of {len(values)} by {asked.by} on {samples:,} {units} of the validation data. "
        "Measured on the same data the ensemble looks better than it is: evaluate it on other data, with --data DIR"
    )
    picked = {"top": asked.top, "of": len(values), "by": asked.by, "samples": samples, "data": config.data.path}
    return found, {"name": "together"} | picked


def _write(out: Path, chosen: Chosen, method: dict[str, Any], asked: argparse.Namespace) -> None:
    members = [each.listed for each in chosen.speakers if each.listed is not None]
    out.mkdir(parents=True, exist_ok=True)
    path = write_ensemble(out, Ensemble(method, asked.combiner, members))
    counts = ((len(members), "member"), (len(chosen.voices), "head"))
    _tell(f"{path}: " + ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts))
    for each in members:
        _tell(f"  {each.name:<24} {each.path}, step {each.step:,}")
    _tell(f"next: python launch/evaluate.py {path}")


def _tell(line: str) -> None:
    if rank_of_launcher() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code == ExitCode.FINISHED)
