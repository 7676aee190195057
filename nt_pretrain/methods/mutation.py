"""Sparse mutations: children of a trained network that differ from it in a random few of its weights.

Child c of generation g is theta + sigma r (eps o S): eps standard normal, S a subset of each matrix's weights of exact
size, r the root mean square of the matrix's active weights in the first parent, so that one sigma means the same for a
matrix of any scale. ``dynamic``: S is drawn anew for every child. ``static``: weights are divided once into parts of
equal size, and child c moves those of part c modulo their number. Everything is a function of (key, generation, child,
matrix, number of the weight): one integer names a child, on every sharding.

Source: T. Whitaker, "Sparse Mutation Decompositions for Fine Tuning Deep Neural Networks with Subspace Evolution"
(arXiv 2302.05832). The paper's abstract says what is split and why; the formulas, and sigma in units of r, are our
reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nt_pretrain.counter_random import bits31, distinct32, key_of, normal
from nt_pretrain.sparsity.scores import code

LARGEST_BITS = (1 << 31) - 2
"""Codes add one to random bits (:mod:`nt_pretrain.sparsity.scores`)."""


@dataclass(frozen=True)
class Child:
    """One child by its numbers."""

    generation: int
    number: int


@dataclass(frozen=True)
class Mutation:
    """What all children of an evolution have in common.

    Attributes:
        sigma: deviation of the noise, in units of a matrix's root mean square.
        density: share of the active weights of every matrix that a child moves; of ``static`` one over a whole number.
    """

    key: int
    sigma: float
    density: float
    scheme: Literal["dynamic", "static"] = "dynamic"

    @property
    def parts(self) -> int:
        """Into how many the weights are divided."""
        return round(1.0 / self.density)

    def places(self, child: Child, count: int) -> tuple[int, int]:
        """First and last (exclusive) place in the random order of ``count`` weights of those that a child moves."""
        if self.scheme == "dynamic":
            return 0, round(self.density * count)
        part = child.number % self.parts
        return round(part * count / self.parts), round((part + 1) * count / self.parts)

    def codes(self, child: Child, name: str, index: Tensor, candidates: Tensor) -> Tensor:
        """Codes (int32) by which the weights of global numbers ``index`` stand in that order, the largest first; 0
        where the bool ``candidates`` is False.
        """
        return code(bits31(self._order(child, name), index).clamp_(max=LARGEST_BITS), candidates)

    def tie_breaker(self, child: Child, name: str, index: Tensor) -> Tensor:
        """Distinct numbers (int64) below 2**32 for weights of equal codes."""
        return distinct32(key_of("tie", self._order(child, name)), index)

    def noise(self, child: Child, name: str, index: Tensor) -> Tensor:
        """eps (fp64) of the weights of global numbers ``index``."""
        return normal(key_of(self.key, "noise", child.generation, child.number, name), index)

    def _order(self, child: Child, name: str) -> int:
        if self.scheme == "static":
            return key_of(self.key, "partition", name)
        return key_of(self.key, "subspace", child.generation, child.number, name)


def moved(values: Tensor, noise: Tensor, scale: float) -> Tensor:
    """``values`` + ``scale`` ``noise``, added in fp64 and rounded once."""
    return (values.to(torch.float64) + scale * noise).to(values.dtype)


def mutation_problems(mutation: Mutation) -> list[str]:
    """What of it cannot be meant, a line each."""
    wrong = []
    if not 0.0 <= mutation.sigma < float("inf"):
        wrong.append(f"--sigma {mutation.sigma:g}: a number from 0 on, in units of a matrix's root mean square")
    if not 0.0 < mutation.density <= 1.0:
        wrong.append(f"--density {mutation.density:g}: a share above 0 and at most 1")
    elif mutation.scheme == "static" and abs(1.0 / mutation.density - mutation.parts) > 1e-3 * mutation.parts:
        near = f"1/{mutation.parts} = {1 / mutation.parts:.6g}"
        wrong.append(f"--density {mutation.density:g}: static parts are of one size, 1 over a whole number; try {near}")
    return wrong
