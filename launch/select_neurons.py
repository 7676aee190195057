"""Choose neurons of a layer by a quadratic problem of zeros and ones, and compare who solves it: all masks, descent,
annealing, or a simulated quantum computer (QAOA):

    python launch/select_neurons.py --demo digits                                   a random network, never trained
    python launch/select_neurons.py runs/demo --layer heads.0.blocks.1.ffn          neurons of a trained network
    python launch/select_neurons.py runs/demo --layer heads.0.output --keep 0.7 --solver qaoa --qaoa-layers 2

Of a trained network the neurons are kept that give a layer's own output back best, on training samples; what that costs
is measured on the validation split. Prints tables and writes the numbers of the neurons that stay as JSON. A curiosity:
docs/SELECTION.md says why. Needs one process. Exit codes as those of launch/pretrain.py: docs/RUNDIR.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import one_of
from nt_pretrain.evaluation.neurons import Wanted
from nt_pretrain.evaluation.select import run, run_demo
from nt_pretrain.evaluation.target import config_of
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import connect, device_problems, leave, rank_of_launcher, world_size_of_launcher
from nt_pretrain.selection.exact import LARGEST
from nt_pretrain.selection.solvers import NAMES, Solver
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of

DEMO_OUT = Path("selection_digits.json")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", metavar="RUN_OR_CHECKPOINT_OR_MANIFEST", help="a trained network")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the run"
    )
    parser.add_argument("--demo", choices=["digits"], help="instead of a trained network: a random one")
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NAME",
        help="a feed-forward layer, or an output layer (what feeds it is chosen from); may be given again, in turn",
    )  # fmt: skip
    parser.add_argument("--keep", type=float, default=0.5, metavar="SHARE", help="neurons that stay (%(default)s)")
    parser.add_argument(
        "--samples", type=int, default=64, metavar="N", help="training samples to choose on (%(default)s)"
    )
    parser.add_argument(
        "--held-out", type=int, default=64, metavar="N", help="validation samples to measure on; 0: all (%(default)s)"
    )
    parser.add_argument("--neurons", type=int, default=240, metavar="N", help="of the demonstration (%(default)s)")
    parser.add_argument("--group", type=int, default=12, metavar="N", help="neurons decided at once (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="over all groups, at most (%(default)s)")
    parser.add_argument("--compared", type=int, default=10, metavar="N", help="groups to compare on (%(default)s)")
    parser.add_argument("--solver", choices=NAMES, default="exact", help="whose choice is written (%(default)s)")
    parser.add_argument(
        "--qaoa-layers", type=int, default=3, metavar="P", help="of --solver qaoa: 1 to 3 (%(default)s)"
    )
    parser.add_argument("--shots", type=int, default=64, metavar="N", help="masks that QAOA draws (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of groups, draws and the random network (%(default)s)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"default: selection/step_N.json in the run's folder; {DEMO_OUT}"
    )
    return parser.parse_intermixed_args(arguments)


def problems(asked: argparse.Namespace) -> list[str]:
    """What of the options cannot be meant."""
    wrong = []
    if (asked.target is None) == (asked.demo is None):
        wrong.append("name either a trained network, such as runs/demo, or --demo digits")
    if asked.demo and asked.layer:
        wrong.append("--layer: the demonstration has one layer; leave it out")
    if not 2 <= asked.group <= LARGEST:
        wrong.append(f"--group {asked.group}: 2 to {LARGEST}; every mask of a group is enumerated")
    if not 1 <= asked.qaoa_layers <= 3:
        wrong.append(f"--qaoa-layers {asked.qaoa_layers}: 1, 2 or 3")
    if not 0.0 < asked.keep <= 1.0:
        wrong.append(f"--keep {asked.keep:g}: above 0 and at most 1")
    least = {"samples": 1, "held_out": 0, "neurons": asked.group, "rounds": 1, "compared": 1, "shots": 1, "seed": 0}
    for name, value in least.items():
        if getattr(asked, name) < value:
            wrong.append(f"--{name.replace('_', '-')} {getattr(asked, name)}: at least {value}")
    return wrong


def wanted_of(asked: argparse.Namespace) -> Wanted:
    others = [Solver(name, shots=asked.shots) for name in NAMES if name != "qaoa"]
    others += [Solver("qaoa", layers=layers, shots=asked.shots) for layers in (1, 2, 3)]
    solver = Solver(asked.solver, layers=asked.qaoa_layers, shots=asked.shots)
    return Wanted(
        tuple(asked.layer), asked.keep, solver, tuple(others), asked.group, asked.rounds, asked.compared, asked.seed
    )


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    try:
        wrong = problems(asked)
        if world_size_of_launcher() > 1:
            wrong.append(f"{world_size_of_launcher()} ranks were started; neurons are chosen by one process")
        if wrong:
            raise ConfigErrors(wrong)
        if asked.demo:
            run_demo(wanted_of(asked), asked.neurons, asked.out or DEMO_OUT, lambda line: print(line, flush=True))
            return ExitCode.FINISHED
        target = one_of(asked.target)
        config = config_of(target, asked.overrides, data=None, samples=asked.held_out)
        if wrong := device_problems(config):
            raise ConfigErrors(wrong)
        run(
            target, config, wanted_of(asked), connect(config), lambda line: print(line, flush=True),
            samples=asked.samples, out=asked.out,
        )  # fmt: skip
    except KeyboardInterrupt:
        return fail(130, "interrupted: nothing was written")
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=0)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))
    print(f"next: python launch/evaluate.py {target.rundir.path}   # all of its measures, with all neurons")
    return ExitCode.FINISHED


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code == ExitCode.FINISHED)
