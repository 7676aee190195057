"""Members whose folders are gone: which of them can be made again without what came before them.

A phase that starts from seeds or from finished models, and does not continue another, is a function of these and of the
data that follows the end of the phase before it. So its member need not be stored.
"""

from __future__ import annotations

from nt_pretrain.methods.phase import Calendar, Clone, Continue, Part, Phase


def sources_of(phase: Phase) -> set[str]:
    """Members made earlier in the same run that ``phase`` reads."""
    found = {mode.name for mode in phase.modes if not mode.path}
    if isinstance(phase.start, Clone | Part) and phase.start.parent and not phase.start.given:
        found.add(phase.start.parent)
    return found


def to_make_again(calendar: Calendar, gone: set[str], ends: set[str]) -> tuple[list[Phase], list[str]]:
    """What to train so that all members that speak are there again.

    Args:
        gone: names of listed members that are not there.
        ends: names of the phases whose end is written down.

    Returns:
        The phases in order, and a line for people on every member that cannot be made again.
    """
    makers = {phase.emits: phase for phase in calendar if phase.emits}
    again: dict[str, Phase] = {}
    lines: list[str] = []

    def wish(name: str) -> bool:
        phase = makers[name]
        reason = _reason(phase, calendar, ends)
        if reason:
            lines.append(f"member {name} is gone and cannot be made again: {reason}")
            return False
        if all(wish(source) for source in sources_of(phase) if source in gone):
            again[name] = phase
            return True
        return False

    for name, phase in makers.items():
        if name in gone and phase.speaks:
            wish(name)
    return [phase for phase in calendar if phase.emits in again], list(dict.fromkeys(lines))


def _reason(phase: Phase, calendar: Calendar, ends: set[str]) -> str:
    """Why a phase cannot be trained alone; "": it can."""
    if isinstance(phase.start, Continue):
        return f"phase {phase.name} continues the one before it. Put its folder back, or train another run"
    before = [each.name for each in calendar if each.last == phase.before]
    if before and before[0] not in ends:
        return f"where the data stood after phase {before[0]} was not written down by the version that trained it"
    return ""
