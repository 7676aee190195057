"""A selection of neurons from the command line to the file: loads, chooses, tells and writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.evaluation.batches import validation_set
from nt_pretrain.evaluation.load import find, load
from nt_pretrain.evaluation.neurons import Chosen, Selection, Wanted, check, choose
from nt_pretrain.evaluation.next_samples import next_samples
from nt_pretrain.evaluation.target import Target
from nt_pretrain.observe.progress import shown_progress
from nt_pretrain.observe.rundir import write_atomic
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.selection.digits import Demo, run_digits
from nt_pretrain.selection.grover import expected_draws, oracle_calls
from nt_pretrain.selection.solvers import best_share_counts, table_lines

COLUMNS = (
    "gap: energy above the group's optimum; 1 is a random mask's mean",
    "best 1%: how much likelier than a uniform draw one draw is among the best 1% of all masks",
)


def run(
    target: Target, config: Config, wanted: Wanted, ranks: Ranks, tell: Callable[[str], None], *, samples: int,
    out: Path | None,
) -> Path:  # fmt: skip
    """Choose neurons of a checkpoint; returns the file with their numbers.

    Args:
        ranks: one.
        samples: training samples to choose on.

    Raises:
        CheckpointError, DataError, ConfigErrors: as :func:`nt_pretrain.evaluation.neurons.choose` and those of loading.
    """
    found = find(target, config, ranks)
    data = validation_set(config, ranks)
    training = next_samples(config, found.state, samples, ranks)
    loaded = load(found, config, ranks)
    check(loaded.model, wanted, world=ranks.world)
    with shown_progress() as progress:
        selection = choose(loaded.model, config, wanted, ranks, training.batches, data.read, progress)
    lines = [f"{config.run.name}, step {loaded.step:,}; chosen on {training.told}"]
    lines += [f"checkpoint skipped: {each}" for each in loaded.skipped] + training.lost
    for each in selection.chosen:
        lines += _layer_lines(each, wanted)
    lines += ["", f"the ensemble on {', '.join(data.locations)}", f"{'':<32}{'NLL':>9}{'accuracy':>10}"]
    lines += [f"{label:<32}{nll:>9.4f}{accuracy:>10.4f}" for label, nll, accuracy in selection.held_out]
    path = out or target.rundir.path / "selection" / f"{folder_name(loaded.step)}.json"
    _write(path, _record(config, loaded.step, wanted, selection), tell, lines)
    return path


def run_demo(wanted: Wanted, neurons: int, out: Path, tell: Callable[[str], None]) -> Demo:
    """The demonstration on digits. Errors as :func:`nt_pretrain.selection.digits.run_digits`."""
    with shown_progress() as progress:
        demo = run_digits(
            neurons, list(wanted.others), group=wanted.group, rounds=wanted.rounds, compared=wanted.compared,
            seed=wanted.seed, progress=progress,
        )  # fmt: skip
    lines = [f"{neurons} random ReLU neurons on handwritten digits; nothing is trained", "", *_figures(wanted)]
    lines += [*table_lines(demo.rows), "", f"{'the whole layer':<20}{'accuracy':>10}{'neurons':>9}{'energy':>10}"]
    lines += [f"{each.label:<20}{each.accuracy:>10.1%}{each.kept:>9}{each.energy:>10.1f}" for each in demo.choices]
    lines += [f"{'least squares':<20}{demo.least_squares:>10.1%}{neurons:>9}", "accuracy is that of held-out digits"]
    choice = next(each for each in demo.choices if each.label == wanted.solver.label)
    record = {"demo": "digits", "solver": choice.label, "seed": wanted.seed, "neurons": neurons}
    record |= {"accuracy": choice.accuracy, "kept": _numbers(choice.mask)}
    _write(out, record, tell, lines)
    return demo


def _layer_lines(each: Chosen, wanted: Wanted) -> list[str]:
    mask = each.selected.mask
    lost = f"{each.lost:.4f} of its squared output is lost"
    return [
        "",
        f"{each.layer}: {int(mask.sum()):,} of {len(mask):,} neurons stay ({wanted.solver.label}); {lost} (the largest "
        f"{each.lost_by_size:.4f}, random ones {each.lost_at_random:.4f}); a neuron's price is {each.price:.3g} of it",
        *_figures(wanted),
        *table_lines(each.rows),
    ]


def _figures(wanted: Wanted) -> list[str]:
    masks, good = best_share_counts(wanted.group)
    return [
        f"{wanted.compared} groups of {wanted.group}: {masks:,} masks each. Grover's search would ask for",
        f"{oracle_calls(masks, good):,} energies for one of the best 1% (uniform draws: "
        f"{expected_draws(masks, good):,.0f}), {oracle_calls(masks, 1):,} for the optimum ({masks:,})",
        *COLUMNS,
    ]


def _record(config: Config, step: int, wanted: Wanted, selection: Selection) -> dict[str, Any]:
    return {
        "run": config.run.name,
        "step": step,
        "solver": asdict(wanted.solver),
        "group": wanted.group,
        "seed": wanted.seed,
        "layers": {
            each.layer: {
                "neurons": len(each.selected.mask),
                "kept": _numbers(each.selected.mask),
                "lost": each.lost,
                "lost_at_random": each.lost_at_random,
                "lost_by_size": each.lost_by_size,
                "price": each.price,
                "solvers": [asdict(row) for row in each.rows],
            }
            for each in selection.chosen
        },
        "held_out": [{"who": who, "nll": nll, "accuracy": accuracy} for who, nll, accuracy in selection.held_out],
    }


def _numbers(mask: np.ndarray) -> list[int]:
    return [int(each) for each in np.flatnonzero(mask)]


def _write(path: Path, record: dict[str, Any], tell: Callable[[str], None], lines: Sequence[str]) -> None:
    for line in lines:
        tell(line)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise ConfigErrors([f"--out {path}: cannot be written: {error.strerror}"]) from None
    tell(f"the neurons that stay: {path}")
