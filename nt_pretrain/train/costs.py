"""One accounting for every method: parameters and floating point operations of each member and of the ensemble.

The unit is the floating point operation: a multiply-add is two. Training counts forward and backward (thrice the
forward pass), inference the forward pass alone. ``total`` is what dense matrices would cost, ``active`` what the active
weights cost alone: published tables count the latter ("theoretical FLOPs") whether or not anything was saved. What this
program executes is ``active`` where only active blocks exist, else ``total``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.curve import OnTrunks
from nt_pretrain.methods.one_phase import one_dense
from nt_pretrain.methods.phase import Calendar, Phase, changed
from nt_pretrain.methods.settings import single
from nt_pretrain.models.accounting import Count
from nt_pretrain.train.plan import Plan, make_plan


@dataclass(frozen=True)
class Cost:
    """Of one member, or of an ensemble.

    Attributes:
        parameters: weights that exist in matrices, and active ones.
        training: operations of its training, of a member those of its own phase.
        executed: of these, what is really computed.
        inference: operations for one token, picture or row.
        inference_executed: of these, what is really computed.
    """

    parameters: Count
    training: Count
    executed: int
    inference: Count
    inference_executed: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.training + other.training,
            self.executed + other.executed,
            self.inference + other.inference,
            self.inference_executed + other.inference_executed,
        )


@dataclass(frozen=True)
class Costs:
    """Of a whole run.

    Attributes:
        members: by name, those that speak. A bridge's parameters and inference are those of its head alone: the trunk
            whose features it reads is that of a mode, which speaks too.
        ensemble: parameters and inference of all of them; training of all phases, also those that only prepare.
        dense: of one dense model trained ``dense_steps`` steps, the unit of relative figures.
    """

    members: dict[str, Cost]
    ensemble: Cost
    dense: Cost
    dense_steps: int


def costs_of(config: Config) -> Costs:
    """What the run of ``config`` costs, whatever the number of ranks."""
    calendar = calendar_of(config)
    by_phase = {phase.name: cost_of(phase) for phase in calendar}
    speaking = _given_modes(calendar) | {
        phase.emits: by_phase[phase.name] for phase in calendar if phase.emits and phase.speaks
    }
    members = speaking or {config.method.name: by_phase[calendar.phases[-1].name]}
    together = _sum(list(members.values()))
    whole = _sum(list(by_phase.values()))
    ensemble = Cost(
        together.parameters, whole.training, whole.executed, together.inference, together.inference_executed
    )
    (dense,) = one_dense(config)
    return Costs(members, ensemble, cost_of(dense), dense.steps)


def trained_until(config: Config, step: int) -> tuple[int, int]:
    """Operations of the first ``step`` steps of the run of ``config``, all its phases: counted, and executed."""
    counted, executed = 0, 0
    for phase in calendar_of(config):
        done, cost = min(max(step - phase.before, 0), phase.steps), cost_of(phase)
        counted += cost.training.active * done // phase.steps
        executed += cost.executed * done // phase.steps
    return counted, executed


def executed_per_sample(phase: Phase) -> int:
    """Operations that a step of ``phase`` executes for a token, picture or row."""
    plan = make_plan(phase.config, 1)
    return cost_of(phase).executed // plan.total_samples


def cost_of(phase: Phase) -> Cost:
    """Of what ``phase`` trains, and of training it."""
    plan: Plan = make_plan(phase.config, 1)
    if isinstance(phase.start, OnTrunks):
        return _of_head(phase, plan)
    forward = plan.flops_per_sample_forward
    return Cost(
        parameters=plan.accounts.all,
        training=Count(plan.total_flops_dense, plan.total_flops_active),
        executed=plan.flops_per_sample_executed * plan.total_samples,
        inference=forward,
        inference_executed=forward.active if plan.executes_active else forward.total,
    )


def _of_head(phase: Phase, plan: Plan) -> Cost:
    """Of a dense head on frozen trunks. Its training runs the trunks and the teacher forward only."""
    config = phase.config
    # A second head adds a head and no trunk.
    wider = make_plan(changed(config, {"model.heads": 2}), 1)
    head = wider.flops_per_sample_forward.total - plan.flops_per_sample_forward.total
    trunk = plan.flops_per_sample_forward.total - head
    teacher = make_plan(single(config), 1).flops_per_sample_forward.total
    training = (trunk + 3 * head + teacher) * plan.total_samples
    parameters = wider.accounts.all.total - plan.accounts.all.total
    return Cost(Count(parameters, parameters), Count(training, training), training, Count(head, head), head)


def _given_modes(calendar: Calendar) -> dict[str, Cost]:
    """Of finished models that speak: nothing is trained."""
    found = {}
    for phase in calendar:
        for mode in phase.start.modes if isinstance(phase.start, OnTrunks) else ():
            if mode.path and mode.speaks:
                whole = cost_of(Phase(mode.name, single(phase.config)))
                found[mode.name] = replace(whole, training=Count(), executed=0)
    return found


def _sum(costs: list[Cost]) -> Cost:
    total = costs[0]
    for cost in costs[1:]:
        total = total + cost
    return total
