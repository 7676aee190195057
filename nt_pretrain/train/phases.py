"""A run from phase to phase: the loop trains each, members are left behind, the next one begins."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nt_pretrain.methods.phase import Calendar, Continue
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import set_timeout
from nt_pretrain.train import readings
from nt_pretrain.train.begin import go_over
from nt_pretrain.train.beside import weights_beside
from nt_pretrain.train.costs import executed_per_sample
from nt_pretrain.train.curve import OnCurve, losses_on
from nt_pretrain.train.loop import Parts, train
from nt_pretrain.train.members import Members
from nt_pretrain.train.phase_plan import in_words
from nt_pretrain.train.recorded import is_recorded
from nt_pretrain.train.state import identity


def train_phases(parts: Parts, calendar: Calendar, members: Members, *, missed: bool = False) -> ExitCode:
    """Train from where ``parts`` stand to the end of the last phase, or until told to stop.

    Args:
        missed: the validation due at the step where they stand was not made.

    Raises:
        As :func:`nt_pretrain.train.loop.train`, and CheckpointError where a member cannot be written or a parent used.
    """
    while True:
        beside = weights_beside(parts.phase, parts.state, members, parts.ranks)
        if missed:
            with beside.for_validation():
                parts.observer.validated(parts.state.step, *parts.validation.measure())
        missed, before = False, parts.state.step
        code = train(parts, beside)
        if code is not ExitCode.FINISHED:
            return code
        if beside.curve is not None:
            _measure(beside.curve, parts, members, trained=parts.state.step > before)
        del beside
        parts.watchdog.at(parts.state.step, "writing a member")
        with parts.meter.paused():
            told = members.emit(parts.phase, parts.state, trained=parts.state.step > before)
        if told:
            parts.observer.made_member(parts.state.step, told)
        if parts.phase.last == calendar.total_steps:
            return code
        parts = _next(parts, calendar, members)


def _measure(curve: OnCurve, parts: Parts, members: Members, *, trained: bool) -> None:
    """The losses on a curve that is done, unless that was done before a kill: then no step was ``trained`` since."""
    step = parts.state.step
    if not trained and is_recorded(members.trained_in, "curve/loss_line", step, parts.ranks):
        return
    with parts.meter.paused():
        losses = losses_on(curve, parts.validation, partial(parts.watchdog.at, step))
    parts.observer.curve_measured(step, losses)


def _next(parts: Parts, calendar: Calendar, members: Members) -> Parts:
    """The parts of the phase after that of ``parts``, whose state it takes over."""
    phase = calendar.phases[len(calendar.begun(parts.phase))]
    state, ranks = parts.state, parts.ranks
    seconds = phase.config.parallel.first_timeout_seconds
    if not isinstance(phase.start, Continue):
        # Another model is built and, where that is wanted, compiled.
        set_timeout(ranks, seconds)
        parts.watchdog.allow(seconds)
    parts.watchdog.at(state.step, f"beginning phase {phase.name}")
    with parts.meter.paused():
        go_over(state, phase, members, ranks)
    parts.meter.flops_per_sample = executed_per_sample(phase)
    density = readings.of_topology(state.budgets) if state.budgets else {}
    parts.observer.phase_begins(state.step, in_words(phase, calendar), density)
    checkpoints = parts.checkpoints
    checkpoints.config, checkpoints.begun = phase.config, calendar.begun(phase)
    checkpoints.identity = identity(phase.config, members.tokenizer)
    return replace(parts, phase=phase, validation=parts.validation.of(phase.config))
