"""Stochastic subnetwork annealing: masks drawn at every step from probabilities that move to a target topology.

Whitaker and Whitley 2024 (arXiv 2401.08830). A weight of the target stays, or comes ever more often; one outside of it
is there ever more rarely, until the topology is the target's and fixed. The formulas are our reading of the paper's
text: ``temperature`` draws every weight outside with one probability that falls from 1, ``random`` starts each weight
at a probability of its own, uniform in [0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nt_pretrain.sparsity.topology import SparseLayer

WHOLE = float(1 << 31)


@dataclass(frozen=True)
class Annealing:
    """How masks go to the target in the first ``steps`` steps of a phase, drawn by ``seed``."""

    form: Literal["temperature", "random"]
    decay: Literal["linear", "cosine"]
    steps: int
    seed: int

    def left(self, step: int) -> float:
        """How much of the way is left before ``step`` of the phase, counted from 1: 1 at first, 0 after the last."""
        progress = min(1.0, (step - 1) / self.steps)
        return 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

    def goes_on_after(self, step: int) -> bool:
        """Whether masks are drawn after ``step`` too."""
        return step < self.steps

    def drawn(self, layer: SparseLayer, step: int) -> Tensor:
        """Flags of the units of ``layer`` that exist at ``step``, a function of the layer's global units alone."""
        left = self.left(step)
        draw = layer.random_bits(self.seed, "anneal", step).double()
        if self.form == "temperature":
            return layer.active | (draw < left * WHOLE)
        start = layer.random_bits(self.seed, "anneal start").double()
        kept = start + (1.0 - left) * (WHOLE - start)
        return draw < torch.where(layer.active, kept, left * start)
