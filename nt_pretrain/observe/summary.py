"""A run in a few lines of text: where it stands, how good it is, what to run next."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path

import psutil
import yaml

from nt_pretrain.config.blocks import dense_options
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.exitcodes import MEANING, ExitCode
from nt_pretrain.observe.history import Row, event_steps, last, read_lines, series, suffixes
from nt_pretrain.observe.log import duration
from nt_pretrain.observe.rundir import RunDir


def status_line(rundir: RunDir, *, again: str, since: float | None = None) -> tuple[str, int]:
    """What became of a run, in one line, and the exit code that goes with it.

    Args:
        again: the command that continues the run, for the text.
        since: seconds since the epoch; a status older than this is of an earlier attempt.
    """
    status = rundir.read_status()
    if status is None or (since is not None and datetime.fromisoformat(status.updated).timestamp() < since):
        return f"{rundir.path}: the run did not start; the message above says why", 1
    where = f"step {status.step:,} of {status.total_steps:,}"
    code = int(status.exit_code or 0)
    if status.state == "finished":
        return f"{rundir.path}: finished at {where}", code
    if status.state == "stopped":
        return f"{rundir.path}: saved at {where}; run {again} again to go on", code or int(ExitCode.STOPPED)
    if status.state == "failed":
        meaning = f" ({MEANING[ExitCode(code)]})" if code in set(ExitCode) else ""
        return f"{rundir.path}: failed at {where}, exit code {code}{meaning}: {status.message}", code or 1
    if psutil.pid_exists(status.pid):
        return f"{rundir.path}: running, at {where} (process {status.pid})", 0
    return f"{rundir.path}: killed near {where}; {again} goes on from the newest checkpoint", 1


def title(rundir: RunDir) -> str:
    """One line that names the run, for the picture."""
    config, status = read_config(rundir), rundir.read_status()
    parts = []
    if config is not None:
        heads = config.model.voices
        parts.append(f"{heads} heads" if heads > 1 else "1 head")
        parts.append(f"density {config.sparsity.density:g}")
    if status is not None:
        parts.append(f"step {status.step:,} of {status.total_steps:,}")
    return f"{rundir.path.resolve().name}: {', '.join(parts)}" if parts else rundir.path.resolve().name


def results(rundir: RunDir) -> list[str]:
    """Validation perplexities against the unigram level, or accuracies, and what the run took."""
    rows = read_lines(rundir.metrics)
    lines = _perplexities(rows)
    hours = last(rows, "time/hours")
    for samples in ("tokens", "pictures", "rows"):
        count = last(rows, f"{samples}/total")
        if count is not None and hours is not None:
            lines.append(f"trained on {count:,.0f} {samples} in {duration(hours * 3600)}")
    updates, (_, turnover) = event_steps(rundir.events, "topology"), series(rows, "sparsity/turnover")
    if updates and turnover:
        ends = f"{turnover[0]:.1%} at the first, {turnover[-1]:.1%} at the last"
        lines.append(f"{len(updates)} topology updates, turnover {ends}")
    return lines


def _perplexities(rows: list[Row]) -> list[str]:
    steps, _ = series(rows, "validation/loss_head_0")
    if not steps:
        return ["no validation yet"]
    if not suffixes(rows, "validation/perplexity_head_"):
        return _accuracies(rows, steps[-1])
    lines = [f"validation perplexity at step {steps[-1]:,} (lower is better)"]
    unigram = last(rows, "validation/unigram_perplexity")
    if unigram is not None:
        lines.append(f"  unigram   {unigram:10,.2f}   word frequencies alone")
    for head in suffixes(rows, "validation/perplexity_head_"):
        lines.append(f"  head {head:<4} {last(rows, f'validation/perplexity_head_{head}'):10,.2f}")
    ensemble = last(rows, "validation/perplexity_ensemble")
    if ensemble is not None:
        lines.append(f"  ensemble  {ensemble:10,.2f}")
    return lines


def _accuracies(rows: list[Row], step: int) -> list[str]:
    """Of pictures and rows."""
    found = [f"validation at step {step:,}: accuracy, loss"]
    names = [f"head_{head}" for head in suffixes(rows, "validation/accuracy_head_")]
    for name in [*names, *(["ensemble"] if len(names) > 1 else [])]:
        accuracy, loss = (last(rows, f"validation/{kind}_{name}") for kind in ("accuracy", "loss"))
        if accuracy is not None and loss is not None:
            found.append(f"  {name.replace('_', ' '):<9} {accuracy:7.2%} {loss:8.3f}")
    return found


def next_commands(rundir: RunDir) -> list[str]:
    """Commands worth trying, as lines of ``command   # why``."""
    found = [
        (f"{_tool('tensorboard')} --logdir {shlex.quote(str(rundir.tensorboard))}", "the same curves, to zoom into")
    ]
    status, config, launch = rundir.read_status(), read_config(rundir), _launch_command(rundir)
    if config is not None and launch is not None:
        finished = status is not None and status.state == "finished"
        if finished and not rundir.members.is_dir():
            # With members there were phases, which would have been longer.
            longer = 2 * config.train.steps
            found.append((_with(launch, f"train.steps={longer}"), "train twice as long, from where it ended"))
        elif not finished:
            found.append((_with(launch), "go on"))
        if config.sparsity.density < 1 and config.method.name == "none":
            dense = _with(launch, *dense_options(config), f"run.name={config.run.name}-dense")
            found.append((dense, "the same heads without sparsity"))
    width = max(len(command) for command, _ in found)
    return [f"{command:<{width}}  # {why}" for command, why in found]


def read_config(rundir: RunDir) -> Config | None:
    """The configuration a run was started with; None where there is none or another version wrote it."""
    try:
        return Config.model_validate(yaml.safe_load(rundir.config.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return None


def _launch_command(rundir: RunDir) -> list[str] | None:
    """The words that started the run, torchrun included, from environment.json."""
    try:
        facts = json.loads(rundir.environment.read_text(encoding="utf-8"))
        processes = facts["torchrun"].get("LOCAL_WORLD_SIZE", "1")
        return [_tool("torchrun"), "--standalone", "--nproc-per-node", processes, *facts["command"]]
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        return None


def _with(launch: list[str], *overrides: str) -> str:
    keys = {override.split("=", 1)[0] for override in overrides}
    return shlex.join([word for word in launch if word.split("=", 1)[0] not in keys] + list(overrides))


def _tool(name: str) -> str:
    """Path of a command of this Python's environment, as short as it can be typed from here."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        return name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
