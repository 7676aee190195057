"""The picture and the numbers of a run, and what to run next.

python launch/report.py runs/demo             # report/curves.png and a summary
python launch/report.py runs/demo --status    # one line: finished, saved, failed or killed; its exit code is the run's
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nt_pretrain.observe import summary
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.rundir import RunDir


def main() -> int:
    options = _options()
    rundir = RunDir(options.run_dir)
    if options.status:
        line, code = summary.status_line(rundir, again=options.again, since=options.since)
        print(line)
        return code
    if not rundir.metrics.exists():
        print(
            f"{rundir.path} is not a run directory: it has no metrics.jsonl. Runs are folders such as runs/demo.",
            file=sys.stderr,
        )
        return ExitCode.CONFIGURATION
    line, _ = summary.status_line(rundir, again=options.again)
    print("\n".join([line, *summary.results(rundir)]))
    code = _draw(rundir)
    print("\n".join(["next:", *(f"  {command}" for command in summary.next_commands(rundir))]))
    return code


def _draw(rundir: RunDir) -> int:
    try:
        from nt_pretrain.observe.curves import draw  # needs matplotlib, which training machines may lack
    except ModuleNotFoundError as error:
        print(
            f"no picture: {error.name} is not installed; it comes with: pip install -c constraints.txt -e '.[report]'",
            file=sys.stderr,
        )
        return ExitCode.CONFIGURATION
    try:
        print(f"picture: {draw(rundir, title=summary.title(rundir))}")
    except ValueError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return ExitCode.DATA
    return ExitCode.FINISHED


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The picture and the numbers of a run, and what to run next.")
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as runs/demo")
    parser.add_argument("--status", action="store_true", help="only say in one line what became of the run")
    parser.add_argument(
        "--since", type=float, help="with --status: a status older than this (seconds since 1970) is not of this run"
    )
    parser.add_argument("--again", default="the same command", help="the command that continues the run, for the text")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
