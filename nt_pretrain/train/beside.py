"""Frozen weights that lie beside the state in some phases: the ends of a curve, a teacher. Others have none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from nt_pretrain.methods.phase import Phase
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.blend import read_weights
from nt_pretrain.train.curve import MIDDLE, OnCurve, shares_at
from nt_pretrain.train.members import Members
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.step import Objective
from nt_pretrain.train.teacher import Teacher, read_teacher


@dataclass(frozen=True)
class Beside:
    """Of one phase."""

    curve: OnCurve | None = None
    teacher: Teacher | None = None

    def for_step(self, step: int) -> AbstractContextManager[None]:
        """Inside, the network is what ``step`` of the phase computes with."""
        return nullcontext() if self.curve is None else self.curve.for_step(step)

    def for_validation(self) -> AbstractContextManager[None]:
        """Inside, the network is what the phase makes: of a curve its middle."""
        return nullcontext() if self.curve is None else self.curve.point(shares_at(MIDDLE))

    def objective(self, step: int, samples: int) -> Objective | None:
        """What ``step`` of the phase minimises, of ``samples`` samples on each rank; None: the loss of the labels."""
        return None if self.teacher is None else self.teacher.objective(step, samples)


def weights_beside(phase: Phase, state: TrainState, members: Members, ranks: Ranks) -> Beside:
    """Read what ``phase`` needs. Collective.

    Raises:
        CheckpointError: a member it needs is not there, or is another one.
        DataError: on all ranks, if training pictures for a teacher's running statistics cannot be read.
    """
    if phase.curve is not None:
        first, last = (
            read_weights(members.mode(mode, phase.config), state.parameters, ranks)
            for mode in (phase.curve.first, phase.curve.last)
        )
        return Beside(curve=OnCurve(phase.curve, state, (first, last), phase.config, ranks))
    if phase.distils is not None:
        parts = members.parts_of(phase.distils.teacher)
        return Beside(teacher=read_teacher(phase.distils, parts, phase.config, ranks))
    return Beside()
