"""Compare methods on one configuration: a grid of runs, one table, one figure.

python launch/compare.py configs/compare_tabular.yaml                              all rows of the file, its seeds
python launch/compare.py configs/demo.yaml --methods dense,treenet,edst --seeds 2   methods, as CONFIG has them
python launch/compare.py CONFIG --budget flops train.steps=500                      as many operations for every row

Every run is one process on one core, trained and evaluated; --at-once of them go side by side. Runs that are finished
are not repeated, so the same command goes on after an interruption. Beside every row stands a dense model that executes
as many operations in training. What the columns mean: docs/METHODS.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nt_pretrain.comparison.claims import claim_problems, judge, unknown_rows
from nt_pretrain.comparison.document import put
from nt_pretrain.comparison.grid import jobs_of, rows_of
from nt_pretrain.comparison.results import results_of
from nt_pretrain.comparison.table import claims_table, results_table, units_in_words
from nt_pretrain.comparison.work import JobFailed, run_all
from nt_pretrain.config.checks import missing_files
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.evaluation.asked import Options
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.run import run as evaluate
from nt_pretrain.methods.manifest import NAME
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import connect, leave
from nt_pretrain.train.failures import exit_code_of, fail, words_of
from nt_pretrain.train.run import run as train


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the configuration all rows share")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options for all rows")
    parser.add_argument("--methods", default="", metavar="A,B", help="rows of the file, or methods (default: all rows)")
    parser.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1 (default: compare.seeds)")
    parser.add_argument("--budget", choices=["steps", "flops"], help="default: compare.budget")
    parser.add_argument("--at-once", type=_positive, default=os.cpu_count() or 1, metavar="N", help="runs side by side")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: run.dir/run.name of the configuration")
    parser.add_argument("--job", nargs=2, metavar=("RUN", "HARMS"), help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    asked = parse(arguments)
    try:
        if asked.job:
            return _job(asked)
        _compare(asked)
    except KeyboardInterrupt:
        return fail(130, "interrupted; the same command goes on")
    except JobFailed as error:
        return fail(1, f"{error}\nThe same command goes on with what is not finished.")
    except Exception as error:
        return fail(exit_code_of(error), words_of(error, rank=0, timeout_seconds=0))
    return ExitCode.FINISHED


def _compare(asked: argparse.Namespace) -> None:
    overrides = [*asked.overrides, *([f"compare.budget={asked.budget}"] if asked.budget else [])]
    base = load_config(asked.config, overrides)
    rows = rows_of(asked.config, overrides, [name for name in asked.methods.split(",") if name])
    if wrong := claim_problems(base.compare) + missing_files(base):
        raise ConfigErrors(wrong)
    seeds = asked.seeds or base.compare.seeds
    folder = asked.out or Path(base.run.dir) / base.run.name
    jobs = jobs_of(asked.config, overrides, rows, seeds)
    print(f"{len(rows)} rows, {seeds} seeds, {len({job.name for job in jobs.values()})} runs in {folder}")
    run_all(
        asked.config, jobs.values(), folder, base.compare.harms, asked.at_once, main,
        lambda line: print(line, flush=True),
    )  # fmt: skip
    results = results_of(rows, jobs, folder)
    text = not base.model.classifies
    parts = [units_in_words(rows, seeds), results_table(rows, results, text=text)]
    named = [row.name for row in rows]
    claims = {says: claim for says, claim in base.compare.claims.items() if not unknown_rows(claim, named)}
    if claims:
        parts.append(claims_table([judge(says, claim, results) for says, claim in claims.items()]))
    page = "\n\n".join(parts)
    print(page)
    figure = _figure(rows, results, folder, base, text=text)
    (folder / "table.md").write_text(page + "\n", encoding="utf-8")
    if base.compare.document and not asked.methods:
        where = Path(base.compare.document)
        picture = ""
        if figure is not None:
            shown = where.with_name(f"{where.stem.lower()}_{base.run.name}.png")
            shown.write_bytes(figure.read_bytes())
            picture = f"\n\n![quality against operations]({shown.name})"
        put(where, base.run.name, page + picture)
        print(f"{where}: the part {base.run.name} is new")
    print(f"next: python launch/report.py {folder}/{next(iter(jobs.values())).name}   # any of its runs")


def _figure(rows: list, results: dict, folder: Path, base: Config, *, text: bool) -> Path | None:
    try:
        from nt_pretrain.comparison.figure import draw  # needs matplotlib, which training machines may lack
    except ModuleNotFoundError as error:
        print(f"no figure: {error.name} is not installed; it comes with: pip install -c constraints.txt -e '.[report]'")
        return None
    figure = draw(rows, results, folder / "figure.png", text=text)
    print(f"table: {folder}/table.md   figure: {figure}")
    return figure


def _job(asked: argparse.Namespace) -> int:
    """Train one run and evaluate what it leaves, in one process."""
    folder, harms = Path(asked.job[0]), asked.job[1]
    config = load_config(asked.config, asked.overrides)
    code = train(config, "the same command", connect(config))
    if code is not ExitCode.FINISHED:
        return code
    # Without a method it is the heads of one model that speak.
    target = folder / NAME if config.method.name != "none" else folder
    chosen = chosen_of(str(target), [], data=None, samples=config.eval.sequences)
    options = Options(
        out=folder / "evaluation" / "comparison",
        data=None,
        share=0.0,
        foreign=None,
        harms=harms or None,
        figures=False,
    )
    evaluate(chosen, options, connect(chosen.config), lambda line: print(line, flush=True))
    return ExitCode.FINISHED


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=True)
