"""Which source each sequence of a global batch comes from: a pure function of (weights, seed, step, place in it).

Shares are whole thousandths. Sequences are numbered through the run; every 1,000 of them in a row, counted from the
step at which the weights came into force, hold each source exactly as often as its share says, in an order that a hash
decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nt_pretrain.data.order import permutation

WINDOW = 1000
"""Sequences after which the shares have been kept to the last one."""


@dataclass(frozen=True)
class Mixture:
    """Sources with weights that change at given steps.

    Attributes:
        names: of the sources.
        phases: (first step, sequences of each source in a window), ascending, the first from step 1 on.
        seed: another one gives another order.
        global_batch: sequences of a step.
    """

    names: tuple[str, ...]
    phases: tuple[tuple[int, tuple[int, ...]], ...]
    seed: int
    global_batch: int

    def source(self, step: int, place: int) -> int:
        """Number of the source of sequence ``place`` of the global batch of ``step`` (from 1)."""
        if len(self.names) == 1:
            return 0
        first, counts = next(phase for phase in reversed(self.phases) if phase[0] <= step)
        number, inside = divmod((step - first) * self.global_batch + place, WINDOW)
        return int(_window(counts, self.seed, first, number)[inside])


@lru_cache(maxsize=64)
def _window(counts: tuple[int, ...], seed: int, first: int, number: int) -> np.ndarray:
    """Sources of the sequences of one window [WINDOW]."""
    return np.repeat(np.arange(len(counts)), counts)[permutation(WINDOW, seed, "mixture", first, number)]


def thousandths(weights: dict[str, float]) -> dict[str, int]:
    """Shares of WINDOW in proportion to ``weights``, rounded by largest remainder; they add up to WINDOW.

    Of equal remainders the first named wins.
    """
    total = sum(weights.values())
    exact = {name: weight / total * WINDOW for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    remainders = sorted(weights, key=lambda name: found[name] - exact[name])
    for name in remainders[: WINDOW - sum(found.values())]:
        found[name] += 1
    return found


def phases_of(
    names: tuple[str, ...], weights: dict[str, float], curriculum: dict[int, dict[str, float]]
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Phases from weights and a curriculum (first step to the weights from there on); sources not named weigh 0."""
    steps = {1: weights} | curriculum
    shares = {first: thousandths(steps[first]) for first in sorted(steps)}
    return tuple((first, tuple(counts.get(name, 0) for name in names)) for first, counts in shares.items())
