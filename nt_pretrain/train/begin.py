"""The state at the beginning of a phase, or where a killed process has left it."""

from __future__ import annotations

import gc

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import Found
from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import recipe_of
from nt_pretrain.methods.curve import Blend, OnTrunks
from nt_pretrain.methods.phase import Calendar, Clone, Continue, Fresh, Part, Phase
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.blend import blended_state, state_on_trunks
from nt_pretrain.train.clone import cloned_state
from nt_pretrain.train.members import Members
from nt_pretrain.train.part import part_state
from nt_pretrain.train.state import TrainState, fresh_state


def initial_state(phase: Phase, members: Members, ranks: Ranks) -> TrainState:
    """The state before the first step of a phase that does not continue another. Collective.

    Raises:
        CheckpointError: the parent that the phase starts from cannot be used.
    """
    if isinstance(phase.start, Clone | Part):
        return _child(phase, phase.start, members, ranks)
    if isinstance(phase.start, Blend):
        return blended_state(phase, members.parts_of(phase.start), ranks)
    if isinstance(phase.start, OnTrunks):
        return state_on_trunks(phase, [members.mode(mode, phase.config) for mode in phase.start.modes], ranks)
    assert isinstance(phase.start, Fresh), f"{phase.name} has nothing to continue"
    return fresh_state(phase.config, ranks)


def _child(phase: Phase, start: Clone | Part, members: Members, ranks: Ranks) -> TrainState:
    found = members.parent_of(start) if start.parent else None
    if isinstance(start, Clone):
        assert found is not None
        state = cloned_state(phase, found, members.tokenizer, ranks)
    else:
        state = part_state(phase, found, members.tokenizer, ranks)
    if found is not None:
        members.adopt(start, found)
    return state


def empty_state(phase: Phase, ranks: Ranks) -> TrainState:
    """The state that a checkpoint of ``phase`` is read into."""
    return fresh_state(phase.config, ranks, frozen_trunk=isinstance(phase.start, OnTrunks))


def go_over(state: TrainState, phase: Phase, members: Members, ranks: Ranks) -> None:
    """Make ``state``, that at the end of a phase, the one before the first step of the next, ``phase``. Collective.

    What is not continued is gone before the new one is made: no two states need to fit into memory.

    Raises:
        CheckpointError: as :func:`initial_state`.
    """
    if isinstance(phase.start, Continue):
        return
    counters = state.step, state.targets, state.seconds
    for name in ("model", "parameters", "optimizer", "layers", "budgets", "average"):
        delattr(state, name)
    gc.collect()
    vars(state).update(vars(initial_state(phase, members, ranks)))
    state.step, state.targets, state.seconds = counters


def phase_of(found: Found | None, calendar: Calendar, config: Config) -> Phase:
    """The phase that a checkpoint lies in, at its end at the latest; without one the first.

    Raises:
        CheckpointError: its run had other phases.
    """
    if found is None:
        return calendar.phases[0]
    # Checkpoints of versions that knew one phase only do not name it.
    begun = [tuple(each) for each in found.state.get("begun", [("train", 0)])]
    number = len(begun) - 1
    if number >= len(calendar.phases) or calendar.begun(calendar.phases[number]) != begun:
        then = ", ".join(f"{name} after {before:,} steps" for name, before in begun)
        now = ", ".join(f"{phase.name} after {phase.before:,} steps" for phase in calendar)
        raise CheckpointError(
            f"{found.path} belongs to a run of other phases: {then}; those of method.name: {config.method.name} are "
            f"now {now}. Set method and train.steps back, or start a new run with another run.name"
        )
    now_recipe, then_recipe = recipe_of(config), found.state.get("recipe", {})
    differing = [
        f"{option} {then_recipe[option]} -> {value}"
        for option, value in now_recipe.items()
        if option in then_recipe and then_recipe[option] != value
    ]
    if differing and len(calendar.phases) > 1:
        raise CheckpointError(
            f"{found.path}: its members were begun with other options: {', '.join(differing)}. Set them back, or start "
            "a new run with another run.name"
        )
    phase = calendar.phases[number]
    if found.step > phase.last and len(calendar.phases) > 1:
        raise CheckpointError(
            f"{found.path} lies in phase {phase.name}, which now ends after step {phase.last:,} already; set method "
            "and train.steps back, or start a new run with another run.name"
        )
    return phase
