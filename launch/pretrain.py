"""Pretrain an ensemble: torchrun launch/pretrain.py CONFIG.yaml [section.key=value ...] [--dry-run [--world N]]

The same command resumes. Exit codes are listed in docs/RUNDIR.md; torchrun itself turns every code but 0 into 1, the
real one stands in status.json of the run directory.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from nt_pretrain.config.checks import missing_files, problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.exitcodes import ExitCode, report_failure
from nt_pretrain.parallel.mesh import (
    connect,
    device_problems,
    launcher_problems,
    leave,
    rank_of_launcher,
    world_size_of_launcher,
)
from nt_pretrain.train.failures import exit_code_of, fail, is_told_alike, words_of
from nt_pretrain.train.phase_plan import render_run
from nt_pretrain.train.run import run


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the run, e.g. configs/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the file"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved run and every derived number, and exit"
    )
    parser.add_argument(
        "--check", action="store_true", help="as --dry-run, but missing data and an impossible start are errors too"
    )
    parser.add_argument("--world", type=positive, help="with --dry-run and --check: number of ranks to plan for")
    return parser.parse_intermixed_args(arguments)


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def checked_config(arguments: argparse.Namespace, world: int) -> Config:
    """The configuration, or all its errors at once.

    Raises:
        ConfigErrors: something is wrong.
    """
    config = load_config(arguments.config, arguments.overrides)
    wrong = problems(config, world_size=world)
    if arguments.check or not arguments.dry_run:
        wrong += missing_files(config) + launcher_problems()
    if not (arguments.check or arguments.dry_run):
        wrong += device_problems(config)
    if wrong:
        raise ConfigErrors(wrong)
    return config


def command_line() -> str:
    """The command that started this run, as a person would type it again."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return shlex.join(["python", *sys.argv])
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    where = "--standalone" if nodes == 1 else f"--nnodes {nodes}"
    return shlex.join(["torchrun", *where.split(), "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], *sys.argv])


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code (docs/RUNDIR.md)."""
    options = parse(arguments)
    world = options.world or world_size_of_launcher()
    try:
        config = checked_config(options, world)
    except ConfigErrors as error:
        return fail(ExitCode.CONFIGURATION, str(error))
    if options.dry_run or options.check:
        print(render_run(config, world))
        for line in missing_files(config):
            print(f"note: {line}")
        again = shlex.join(["torchrun", "launch/pretrain.py", options.config, *options.overrides])
        print(f"nothing was started. To train: {again}")
        return 0
    try:
        code = run(config, command_line(), connect(config))
        if code is ExitCode.STOPPED:
            report_failure("stopped early and saved; nothing failed: the same command goes on")
        return code
    except Exception as error:
        words = words_of(error, rank=rank_of_launcher(), timeout_seconds=config.parallel.timeout_seconds)
        return fail(exit_code_of(error), words, on_every_rank=not is_told_alike(error))


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    leave(exit_code, together=exit_code in (ExitCode.FINISHED, ExitCode.STOPPED))
