"""The picture and the numbers of a run, a page of what differs inside its members, and what to run next.

python launch/report.py runs/demo                  # report/curves.png, report/index.html and a summary
python launch/report.py runs/demo/ensemble.json    # of an ensemble of several members
python launch/report.py runs/demo --samples 0      # without a look inside: no checkpoint is loaded
python launch/report.py runs/demo --status         # one line: finished, saved, failed or killed; exits as the run did

What the page shows, and how to read it: docs/REPORT.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nt_pretrain.methods.manifest import NAME
from nt_pretrain.observe import summary
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.progress import shown_progress
from nt_pretrain.observe.rundir import RunDir

INSTALL = "it comes with: pip install -c constraints.txt -e '.[report]'"


def main() -> int:
    options = _options()
    path: Path = options.run
    rundir = RunDir(_folder(path))
    if options.status:
        line, code = summary.status_line(rundir, again=options.again, since=options.since)
        print(line)
        return code
    trained, ensemble = rundir.metrics.exists(), path.name == NAME or (path / NAME).is_file()
    if not trained and not ensemble:
        print(
            f"{rundir.path} is not a run directory: it has no metrics.jsonl. Runs are folders such as runs/demo.",
            file=sys.stderr,
        )
        return ExitCode.CONFIGURATION
    if trained:
        line, _ = summary.status_line(rundir, again=options.again)
        print("\n".join([line, *summary.results(rundir)]))
    curves, code = _draw(rundir) if trained else (None, int(ExitCode.FINISHED))
    code = _write(options, rundir, curves, ensemble) or code
    if trained:
        print("\n".join(["next:", *(f"  {command}" for command in summary.next_commands(rundir))]))
    return code


def _folder(path: Path) -> Path:
    """The run's folder, or the manifest's."""
    if path.name == NAME:
        return path.parent
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _draw(rundir: RunDir) -> tuple[Path | None, int]:
    """The picture of the curves, and the exit code where there is none."""
    try:
        from nt_pretrain.observe.curves import draw  # needs matplotlib, which training machines may lack
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed; {INSTALL}", file=sys.stderr)
        return None, ExitCode.CONFIGURATION
    try:
        picture = draw(rundir, title=summary.title(rundir))
    except ValueError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return None, ExitCode.DATA
    print(f"picture: {picture}")
    return picture, ExitCode.FINISHED


def _write(options: argparse.Namespace, rundir: RunDir, curves: Path | None, is_ensemble: bool) -> int:
    """Write the page; returns the exit code."""
    without = "" if options.samples else "--samples 0"
    if not is_ensemble and not any(rundir.checkpoints.glob("step_*")):
        without = without or "there is no checkpoint yet"
    try:
        # torch takes seconds to load, which --status has no need of.
        from nt_pretrain.diversity.report import Wanted, write_report
        from nt_pretrain.train.failures import exit_code_of, words_of
    except ModuleNotFoundError as error:
        return _not_installed(error)
    wanted = Wanted(options.run, rundir, options.samples, options.units, tuple(options.overrides), without)
    try:
        with shown_progress() as progress:
            page = write_report(wanted, curves, progress, print)
    except ModuleNotFoundError as error:
        return _not_installed(error)
    except KeyboardInterrupt:
        print("interrupted: the page is without a look inside", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"no look inside: {words_of(error, rank=0, timeout_seconds=0)}", file=sys.stderr)
        return exit_code_of(error)
    print(f"page: {page}")
    return ExitCode.FINISHED


def _not_installed(error: ModuleNotFoundError) -> int:
    print(f"no look inside: {error.name} is not installed; {INSTALL}", file=sys.stderr)
    return ExitCode.CONFIGURATION


def count(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", metavar="RUN_OR_MANIFEST", type=Path, help="folder of a run, such as runs/demo, or an ensemble.json"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the run"
    )
    parser.add_argument("--status", action="store_true", help="only say in one line what became of the run")
    parser.add_argument(
        "--since", type=float, help="with --status: a status older than this (seconds since 1970) is not of this run"
    )
    parser.add_argument("--again", default="the same command", help="the command that continues the run, for the text")
    parser.add_argument(
        "--samples",
        type=count,
        default=64,
        metavar="N",
        help="look inside with the first N validation samples; 0: not at all (%(default)s)",
    )
    parser.add_argument(
        "--units", type=count, default=6, metavar="K", help="draw K units of each block; 0: none (%(default)s)"
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    raise SystemExit(main())
