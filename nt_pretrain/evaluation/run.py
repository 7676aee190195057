"""The composition root of an evaluation: loads, measures, and writes what was found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.robustness_table import tables
from nt_pretrain.evaluation.batches import validation_set
from nt_pretrain.evaluation.evaluate import Evaluation, evaluate
from nt_pretrain.evaluation.harmed import harms_named
from nt_pretrain.evaluation.load import load
from nt_pretrain.evaluation.norms import measure_norms_again
from nt_pretrain.evaluation.record import record_of, to_text
from nt_pretrain.evaluation.table import render
from nt_pretrain.evaluation.target import Target, of_other_data
from nt_pretrain.observe.progress import shown_progress
from nt_pretrain.observe.rundir import write_atomic
from nt_pretrain.parallel.mesh import Ranks

RECORD = "evaluation.json"


@dataclass(frozen=True)
class Options:
    """What a command line asks for beside the checkpoint and its configuration.

    Attributes:
        out: folder of what is written; None: ``evaluation/step_N`` in the run's folder, with ``-average`` or the name
            of other data than the run's behind it.
        data: another prepared corpus than the run's, or None.
        share: of the samples that temperatures are fitted on; 0: none are.
        average: measure the moving average of the weights instead of these.
        foreign: a prepared corpus whose samples are to be told from those of the run's, or None.
        harms: names of harms with commas between, or "all"; None for none.
        domains: prepared corpora to measure beside the run's own.
        norms: training pictures on which running statistics of batch norms are measured again; 0: they stay.
    """

    out: Path | None
    data: str | None
    share: float
    foreign: str | None
    average: bool = False
    harms: str | None = None
    domains: tuple[str, ...] = ()
    norms: int = 0


def run(target: Target, config: Config, options: Options, ranks: Ranks, tell: Callable[[str], None]) -> Path:
    """Evaluate a checkpoint and write the record and the figures; returns their folder. Collective.

    Args:
        tell: what to do with lines for people; called on rank 0 only.

    Raises:
        CheckpointError, DataError, ConfigErrors: on all ranks.
    """
    harms = harms_named(options.harms, config)
    if options.norms and not config.model.sees_pictures:
        raise ConfigErrors([f"--norms: {config.model.family} has no batch norms; leave it out"])
    loaded = load(target, config, ranks, average=options.average)
    data = validation_set(config, ranks)
    foreign = None
    if options.foreign is not None:
        foreign = validation_set(of_other_data(config, options.foreign), ranks, foreign=True)
    with shown_progress() if ranks.rank == 0 else contextlib.nullcontext(_silent) as progress:
        if options.norms:
            again = partial(progress, "norms")
            measure_norms_again(loaded.model, config, ranks, options.norms, again)
            loaded = replace(loaded, norms=options.norms)
        found = evaluate(
            config, loaded, data, ranks, share=options.share, foreign=foreign, harms=harms, domains=options.domains,
            progress=progress,
        )  # fmt: skip
    return on_first(ranks.control, "cannot write the evaluation", lambda: _written(target, found, options, tell))


def _written(target: Target, found: Evaluation, options: Options, tell: Callable[[str], None]) -> Path:
    name = folder_name(found.checkpoint.step)
    name += "-average" if options.average else ""
    if options.data is not None:
        name += f"-{Path(options.data.rstrip('/')).name}"
    out = options.out or target.rundir.evaluation / name
    out.mkdir(parents=True, exist_ok=True)
    record = record_of(found)
    write_atomic(out / RECORD, to_text(record))
    more = [] if found.robustness is None else tables(found.robustness)
    tell(render(record, more, bold=sys.stdout.isatty()))
    tell(f"all values: {out / RECORD}")
    try:
        from nt_pretrain.evaluation.draw import draw_all  # needs matplotlib, which training machines may lack
    except ModuleNotFoundError as error:
        tell(
            f"no figures: {error.name} is not installed; it comes with: pip install -c constraints.txt -e '.[report]'"
        )  # fmt: skip
    else:
        if found.whole.classification.counts[1] or not found.whole.classification.counts[0]:
            tell("no figures: there is no sample whose outputs are numbers")
        else:
            tell(f"figures in {out}: {', '.join(path.name for path in draw_all(found, out))}")
    return out


def _silent(what: str, done: int, total: int) -> None:
    return None
