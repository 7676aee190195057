"""Between finished models: weighted sums of their weights, curves from one to another, and what is distilled from them.

A quadratic Bezier curve theta(r) = (1 - r)^2 theta_0 + 2 r (1 - r) phi + r^2 theta_1 joins two modes (Garipov et al.
2018, arXiv 1802.10026); its ends are the modes themselves and only phi, the control point, is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nt_pretrain.counter_random import key_of, uniform


@dataclass(frozen=True)
class Mode:
    """A finished model.

    Attributes:
        name: of a member made earlier in this run; of a given one, the name the manifest lists it by.
        path: a run or checkpoint, where it is given.
        speaks: of a given one, whether it belongs to the ensemble.
    """

    name: str
    path: str = ""
    speaks: bool = False


@dataclass(frozen=True)
class Blend:
    """Weights that are a weighted sum of those of finished models, element by element; no moments."""

    parts: tuple[tuple[Mode, float], ...]

    @property
    def in_words(self) -> str:
        return " + ".join(mode.name if share == 1.0 else f"{share:g} {mode.name}" for mode, share in self.parts)


@dataclass(frozen=True)
class OnTrunks:
    """The trunks of finished models, which stay as they are; heads start from the phase's ``run.seed``."""

    modes: tuple[Mode, ...]


@dataclass(frozen=True)
class Curve:
    """What is trained is the control point of a curve from ``first`` (r = 0) to ``last`` (r = 1)."""

    first: Mode
    last: Mode
    seed: int

    def position(self, step: int) -> float:
        """r of ``step``, uniform in [0, 1): the same on every rank."""
        return float(uniform(key_of(self.seed, "curve"), torch.tensor([step]))[0])


def shares_at(r: float) -> tuple[float, float, float]:
    """Of the first mode, the control point and the last mode at ``r`` of a curve; the middle one is the derivative of
    the weights by the control point.
    """
    return (1.0 - r) ** 2, 2.0 * r * (1.0 - r), r**2


@dataclass(frozen=True)
class Distillation:
    """The head learns what ``teacher`` predicts, not labels.

    Attributes:
        mixup: a of Beta(a, a), by which inputs are mixed with others of their micro-batch; 0: not at all.
    """

    teacher: Blend
    mixup: float
    seed: int
