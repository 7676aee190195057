"""The composition root of an evaluation: loads, measures, and writes what was found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.eval.robustness_table import tables
from nt_pretrain.eval.voices import Voices
from nt_pretrain.evaluation.asked import Options, asked_of
from nt_pretrain.evaluation.batches import ValidationSet, validation_set
from nt_pretrain.evaluation.chosen import Chosen
from nt_pretrain.evaluation.costs import costs_of_chosen
from nt_pretrain.evaluation.evaluate import Evaluation, Progress, evaluate
from nt_pretrain.evaluation.harmed import harms_named, robustness_of
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.passes import with_passes
from nt_pretrain.evaluation.place import RECORD, free_folder, remove_figures
from nt_pretrain.evaluation.record import record_of, to_text
from nt_pretrain.evaluation.speakers import find_all, load_all, voices_of
from nt_pretrain.evaluation.table import render
from nt_pretrain.evaluation.target import of_other_data
from nt_pretrain.evaluation.trunks import on_shared_trunks
from nt_pretrain.observe.progress import shown_progress
from nt_pretrain.observe.rundir import write_atomic
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.norms import measure_norms_again

WRITING = "cannot write the evaluation"
UNFINISHED = "robustness was asked for and is not measured yet"
"""Note of a record that is written before the hours that robustness may take."""


def run(chosen: Chosen, options: Options, ranks: Ranks, tell: Callable[[str], None]) -> Path:
    """Evaluate a checkpoint or an ensemble, and write the record and the figures; returns their folder. Collective.

    Args:
        tell: what to do with lines for people; called on rank 0 only.

    Raises:
        CheckpointError, DataError, ConfigErrors: on all ranks.
    """
    config = chosen.config
    harms = harms_named(options.harms, config)
    if options.norms and not config.model.sees_pictures:
        raise ConfigErrors([f"--norms: {config.model.family} has no batch norms; leave it out"])
    asked = asked_of(chosen, options, harms)
    if chosen.why and ranks.rank == 0:
        tell(chosen.why)
    checkpoints = find_all(chosen, ranks)
    # Every set is opened before anything takes long.
    data, foreign = validation_set(config, ranks), None
    if options.foreign is not None:
        foreign = _other_set("--ood", options.foreign, config, ranks, foreign=True)
    for domain in options.domains:
        _other_set("--domain", domain, config, ranks)
    loaded = load_all(checkpoints, chosen, ranks, average=options.average)
    voices = voices_of(chosen, loaded)
    if options.dropout is not None:
        voices = with_passes(voices, *options.dropout)
    with shown_progress() if ranks.rank == 0 else contextlib.nullcontext(_silent) as progress:
        if options.norms:
            loaded = _with_norms(loaded, chosen, ranks, options.norms, progress)
        # Robustness is measured of every member's own weights, each harmed by itself: nothing is shared there.
        shared = on_shared_trunks(voices, chosen, ranks) if options.dropout is None else voices
        costs = on_first(ranks.control, "cannot count costs", lambda: _costs(chosen, loaded, shared, options))
        found = evaluate(chosen, loaded, shared, data, ranks, share=options.share, foreign=foreign, progress=progress)
        found = replace(found, costs=costs)
        wanted = harms or options.domains
        first = replace(found, notes=[*found.notes, UNFINISHED]) if wanted else found
        out = on_first(ranks.control, WRITING, lambda: _place(chosen, first, asked, options, tell))
        if wanted:
            robustness = robustness_of(config, voices, ranks, harms, options.domains, progress)
            found = replace(found, robustness=robustness)
            on_first(ranks.control, WRITING, lambda: _write(out, record_of(found, asked)))
    return on_first(ranks.control, "cannot show the evaluation", lambda: _show(found, asked, out, options, tell))


def _other_set(option: str, path: str, config: Config, ranks: Ranks, *, foreign: bool = False) -> ValidationSet:
    try:
        return validation_set(of_other_data(config, path), ranks, foreign=foreign)
    except DataError as error:
        raise DataError(f"{option} {path}: {error}") from None


def _with_norms(loaded: list[Loaded], chosen: Chosen, ranks: Ranks, pictures: int, progress: Progress) -> list[Loaded]:
    found = []
    for each, one in zip(chosen.speakers, loaded, strict=True):
        what = partial(progress, f"norms of {each.name}" if each.name else "norms")
        found.append(replace(one, norms=measure_norms_again(one.model, each.config, ranks, pictures, what)))
    return found


def _costs(chosen: Chosen, loaded: list[Loaded], voices: Voices, options: Options) -> dict[str, Any]:
    """What is computed once is counted once; passes of MC dropout drop other units, and share nothing."""
    passes = 1 if options.dropout is None else options.dropout[1]
    pairs = zip(chosen.speakers, voices.parts, strict=True) if passes == 1 else ()
    shared = [each.name for each, part in pairs if part.trunks]
    return costs_of_chosen(chosen, [one.step for one in loaded], shared=shared, passes=passes)


def _place(
    chosen: Chosen, found: Evaluation, asked: dict[str, Any], options: Options, tell: Callable[[str], None]
) -> Path:
    """Choose the folder and write the record into it, in the place of one that was asked for alike."""
    name = folder_name(found.checkpoints[0].step) if chosen.manifest is None else "ensemble"
    name += "-average" if options.average else ""
    name += f"-dropout-{options.dropout[0]:g}x{options.dropout[1]}" if options.dropout is not None else ""
    if options.data is not None:
        name += f"-{Path(options.data.rstrip('/')).name}"
    out, why = free_folder(chosen.home.evaluation / name, asked) if options.out is None else (options.out, "")
    out.mkdir(parents=True, exist_ok=True)
    _write(out, record_of(found, asked))
    told = [why] if why else []
    told += [f"an older figure stays: {problem}" for problem in remove_figures(out)]
    for line in told:
        tell(line)
    return out


def _write(out: Path, record: dict[str, Any]) -> Path:
    write_atomic(out / RECORD, to_text(record))
    return out


def _show(found: Evaluation, asked: dict[str, Any], out: Path, options: Options, tell: Callable[[str], None]) -> Path:
    more = [] if found.robustness is None else tables(found.robustness)
    tell(render(record_of(found, asked), more, bold=sys.stdout.isatty()))
    tell(f"all values: {out / RECORD}")
    if options.figures:
        tell(_figures(found, out))
    return out


def _figures(found: Evaluation, out: Path) -> str:
    """Draw the figures; what to tell of them. Whatever goes wrong with them costs nothing else."""
    if found.whole.classification.counts[1] or not found.whole.classification.counts[0]:
        return "no figures: there is no sample whose outputs are numbers"
    try:
        from nt_pretrain.evaluation.draw import draw_all  # needs matplotlib, which training machines may lack

        return f"figures in {out}: {', '.join(path.name for path in draw_all(found, out))}"
    except Exception as error:
        remove_figures(out)  # some may be drawn, one by half
        if isinstance(error, ModuleNotFoundError):
            return (
                f"no figures: {error.name} is not installed; it comes with: "
                "pip install -c constraints.txt -e '.[report]'"
            )
        return f"no figures: {type(error).__name__}: {error}"


def _silent(what: str, done: int, total: int) -> None:
    return None
