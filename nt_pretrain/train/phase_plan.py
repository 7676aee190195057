"""What the phases of a run amount to, before anything is started, and a phase in words."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.curve import Blend, OnTrunks
from nt_pretrain.methods.phase import Calendar, Clone, Continue, Part, Phase
from nt_pretrain.train.beside_memory import plan_of
from nt_pretrain.train.costs import cost_of, costs_of
from nt_pretrain.train.plan import aligned_table, power, readable_bytes, render


def render_run(config: Config, world_size: int) -> str:
    """The plan of the first phase, all phases where there are several, and what a method costs."""
    calendar = calendar_of(config)
    first = calendar.phases[0]
    parts = [render(plan_of(first, world_size), first.config)]
    parts += [_phases(config, calendar, world_size)] if len(calendar.phases) > 1 else []
    parts += [_costs(config)] if config.method.name != "none" else []
    return "\n\n".join(parts)


def heaviest(config: Config, world_size: int) -> Phase:
    """The phase that takes the most memory on a rank, the first of them."""
    return max(calendar_of(config), key=lambda phase: plan_of(phase, world_size).memory.peak)


def in_words(phase: Phase, calendar: Calendar) -> str:
    """One line for people."""
    number = len(calendar.begun(phase))
    where = f"steps {phase.before + 1:,} to {phase.last:,}"
    return f"phase {number} of {len(calendar.phases)}, {phase.name}: {where}, from {start_in_words(phase)}"


def start_in_words(phase: Phase) -> str:
    """What a phase starts from."""
    match phase.start:
        case Clone(parent=parent, keeps=keeps):
            if keeps is None and phase.start.noise is not None:
                noise = phase.start.noise
                return f"{parent}, noise {noise.sigma:g} on {noise.density:.3g} of its weights"
            if keeps is None:
                return parent
            return f"{parent}, units {keeps.first:.0%} to {keeps.last:.0%} in {keeps.order} order"
        case Part():
            parent = phase.start.parent or f"seed {phase.start.wide.run.seed}"
            return f"{parent}, part {phase.start.number + 1} of {phase.start.of} of its units"
        case Blend():
            return phase.start.in_words
        case OnTrunks(modes):
            return f"seed {phase.config.run.seed} on the trunk of " + " and ".join(mode.name for mode in modes)
        case Continue(escape):
            return "the phase before" + (f", escape {escape:g}" if escape else "")
        case _:
            return f"seed {phase.config.run.seed}"


def _phases(config: Config, calendar: Calendar, world_size: int) -> str:
    headings = ("steps", "starts from", "density", "active", "FLOPs, all weights", "FLOPs, active", "memory", "member")
    rows = aligned_table(f"phases of method {config.method.name}", *headings)
    rows.columns[2].justify = rows.columns[8].justify = "left"
    sums = [0, 0]
    for phase in calendar:
        plan = plan_of(phase, world_size)
        training = cost_of(phase).training
        sums = [sums[0] + training.total, sums[1] + training.active]
        member = phase.emits + ("" if phase.speaks or not phase.emits else " (does not speak)")
        rows.add_row(
            f"  {phase.name}", f"{phase.steps:,}", start_in_words(phase), f"{plan.accounts.sparse.density:.4f}",
            f"{plan.accounts.all.active:,}", power(training.total), power(training.active),
            readable_bytes(plan.memory.peak), member,
        )  # fmt: skip
    rows.add_section()
    rows.add_row("  all", f"{calendar.total_steps:,}", "", "", "", power(sums[0]), power(sums[1]), "", "")
    return _written(rows)


def _costs(config: Config) -> str:
    """Of every member that speaks and of all together, beside one dense model."""
    costs = costs_of(config)
    units = (costs.dense.executed, costs.dense.inference_executed)
    kinds = [f"{what}, {how}" for what in ("training", "inference") for how in ("counted", "executed")]
    rows = aligned_table("costs in FLOPs", "parameters", "active", *kinds)
    together = {"all, with every phase": costs.ensemble, "one dense model": costs.dense}
    for name, cost in [*costs.members.items(), *together.items()]:
        counted = (cost.training.active, cost.executed), (cost.inference.active, cost.inference_executed)
        cells = [f"{power(x)} ({x / unit:.3f})" for pair, unit in zip(counted, units, strict=True) for x in pair]
        rows.add_row(f"  {name}", f"{cost.parameters.total:,}", f"{cost.parameters.active:,}", *cells)
    note = f"A multiply-add is two FLOPs. In brackets: relative to one dense model trained {costs.dense_steps:,} steps."
    return f"{_written(rows)}\n{note}"


def _written(rows: Table) -> str:
    out = Console(file=io.StringIO(), width=200, color_system=None, highlight=False, markup=False, emoji=False)
    out.print(rows)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())
