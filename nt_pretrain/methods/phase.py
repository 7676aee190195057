"""A phase: some steps of the one training loop, with what they start from and the member they leave behind.

A method is a list of phases. Each has a whole configuration of its own: its ``train.steps`` are the length of the
phase, its ``optim`` the shape of the learning rate, its ``sparsity`` the topology updates, its ``run.seed`` initial
values, topologies and ties. Learning rates, topology updates and densities are functions of (configuration, step)
within a phase, with steps counted from its beginning. The stream of data goes on through all phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of
from nt_pretrain.methods.annealing import Annealing
from nt_pretrain.methods.curve import Blend, Curve, Distillation, Mode, OnTrunks
from nt_pretrain.methods.mutation import Mutation
from nt_pretrain.models.partition import Order, Residual


@dataclass(frozen=True)
class Fresh:
    """Initial values and first topology, functions of the phase's ``run.seed``."""


@dataclass(frozen=True)
class Continue:
    """The state of the phase before, moments and topology included.

    Attributes:
        escape: prune rate of one topology update in the first step, with the dense gradient of that step; 0: none.
    """

    escape: float = 0.0


@dataclass(frozen=True)
class Slice:
    """The units a child keeps of its parent: those from ``first`` to ``last`` in one order of a layer's units.

    Shares of the active units of the parent. Slices that meet partition the parent exactly: their ends are rounded
    alike. [0, d) is a subnetwork of density d, [d, 1) its complement, [k / K, (k + 1) / K) part k of K.

    Attributes:
        order: ``random``, by ``key``; or ``magnitude``, the largest first.
    """

    order: Literal["random", "magnitude"]
    first: float
    last: float
    key: int = 0

    def units(self, active: int) -> tuple[int, int]:
        """First and last (exclusive) place in the order of a layer with ``active`` units."""
        return round(self.first * active), round(self.last * active)


@dataclass(frozen=True)
class Clone:
    """The weights of a finished model, without moments.

    Attributes:
        parent: name of a member made earlier in this run; or, where ``given``, a run or checkpoint.
        keeps: its units that the child has; None: all of them.
        noise: on the weights of a child that has them all, as on the first child of this mutation; None: no noise.
        listed: of a given one, its name in the manifest.
        speaks: of a given one, whether it belongs to the ensemble.
    """

    parent: str
    given: bool = False
    keeps: Slice | None = None
    noise: Mutation | None = None
    listed: str = "parent"
    speaks: bool = False


@dataclass(frozen=True)
class Part:
    """Some of the units of a wider model, packed as a narrower one, without moments: its part ``number`` of ``of``.

    Attributes:
        wide: configuration of the wider model; with its ``run.seed`` it says its initial values.
        dealing: how units are dealt, by their score.
        residual: whether those of the residual stream are dealt too.
        parent: as in :class:`Clone`; "": the wider model at its initial values.
        given: as in :class:`Clone`.
    """

    wide: Config
    number: int
    of: int
    dealing: Order
    residual: Residual
    parent: str = ""
    given: bool = False


Start = Fresh | Continue | Clone | Part | Blend | OnTrunks


@dataclass(frozen=True)
class Phase:
    """Some steps of a run.

    Attributes:
        name: unique in the calendar.
        config: what holds in these steps.
        emits: name of the member that the state after the last step becomes; "": none.
        speaks: whether that member belongs to the ensemble, or is only made on the way.
        annealing: how the masks of a clone's units are drawn at first; None: they are there from the first step on.
        curve: on which steps compute, whose control point is trained; None: they compute with the weights themselves.
        distils: what a head on frozen trunks learns from instead of labels.
        before: steps of the run that lie before this phase; set by :class:`Calendar`.
    """

    name: str
    config: Config
    start: Start = Fresh()
    emits: str = ""
    speaks: bool = True
    annealing: Annealing | None = None
    curve: Curve | None = None
    distils: Distillation | None = None
    before: int = 0

    @property
    def steps(self) -> int:
        return self.config.total_steps

    @property
    def last(self) -> int:
        """Step of the run that ends it."""
        return self.before + self.steps

    @property
    def modes(self) -> list[Mode]:
        """Finished models that it reads as they are: what its start, its curve and its teacher consist of."""
        found = []
        if isinstance(self.start, Blend):
            found += [mode for mode, _ in self.start.parts]
        if isinstance(self.start, OnTrunks):
            found += self.start.modes
        if self.curve is not None:
            found += [self.curve.first, self.curve.last]
        if self.distils is not None:
            found += [mode for mode, _ in self.distils.teacher.parts]
        return found

    def config_at(self, step: int) -> Config:
        """What holds at ``step`` of the phase, counted from 1: in the first one of an escape, its prune rate."""
        escape = self.start.escape if isinstance(self.start, Continue) else 0.0
        if step != 1 or not escape:
            return self.config
        return changed(
            self.config,
            {
                "sparsity.prune_rate": escape, "sparsity.prune_rate_schedule": "constant", "sparsity.update_every": 1,
                "sparsity.stop_fraction": 1.0,
            },
        )  # fmt: skip


@dataclass(frozen=True)
class Calendar:
    """The phases of a run, one after the other on one axis of steps."""

    phases: tuple[Phase, ...]

    @staticmethod
    def of(phases: list[Phase]) -> Calendar:
        """Phases in order, placed behind one another."""
        placed, before = [], 0
        for phase in phases:
            placed.append(replace(phase, before=before))
            before += phase.steps
        names = [phase.name for phase in placed]
        emitted = [phase.emits for phase in placed if phase.emits]
        assert len(set(names)) == len(names) and len(set(emitted)) == len(emitted), f"{names} {emitted}"
        return Calendar(tuple(placed))

    @property
    def total_steps(self) -> int:
        return self.phases[-1].last

    def begun(self, phase: Phase) -> list[tuple[str, int]]:
        """Name and steps before it of the phases up to ``phase``, in order (JSON)."""
        return [(each.name, each.before) for each in self.phases if each.before <= phase.before]

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)


def changed(config: Config, changes: Mapping[str, object]) -> Config:
    """The configuration with other values of some options, ``section.key`` to value."""
    sections: dict[str, dict[str, object]] = {}
    for option, value in changes.items():
        section, key = option.split(".")
        sections.setdefault(section, {})[key] = value
    updated = {}
    for name, values in sections.items():
        section = getattr(config, name)
        unknown = values.keys() - type(section).model_fields.keys()
        assert not unknown, f"{name}: {unknown}"
        updated[name] = section.model_copy(update=values)
    return config.model_copy(update=updated)


def of_length(config: Config, steps: int, changes: Mapping[str, object] | None = None) -> Config:
    """The configuration of a phase of ``steps`` steps, whatever ``steps_over_density`` made of those of the run."""
    length = {"train.steps": max(1, steps), "train.steps_over_density": False}
    return changed(config, {"optim.warmup_steps": config.warmup_steps} | length | dict(changes or {}))


def seed_of(config: Config, number: int) -> int:
    """Seed of phase or member ``number``: that of the run for the first, others far from those of other runs."""
    return config.run.seed if number == 0 else key_of(config.run.seed, "member", number) % (1 << 31)


def shares(total: int, parts: int) -> list[int]:
    """``total`` steps in ``parts`` as equal as can be, longer ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]
