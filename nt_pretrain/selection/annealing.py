"""Simulated annealing of single flips (Kirkpatrick, Gelatt and Vecchi 1983)."""

from __future__ import annotations

import numpy as np

from nt_pretrain.selection.greedy import Flips
from nt_pretrain.selection.qubo import Qubo

COLDEST = 1e-3
"""Last temperature, as a share of the first."""


def annealing(qubo: Qubo, *, sweeps: int, seed: int) -> np.ndarray:
    """The best mask [n] that a walk of ``sweeps`` times n tried flips has met.

    The walk starts at a random mask. The first temperature is the largest change by one flip of it; it falls
    geometrically, once a sweep.
    """
    draw = np.random.default_rng(seed)
    flips = Flips(qubo, draw.random(qubo.size) < 0.5)
    hottest = max(float(np.abs(flips.gains()).max(initial=0.0)), 1e-300)
    energy = best_energy = float(qubo.energy(flips.mask))
    best = flips.mask.copy()
    for sweep in range(sweeps):
        temperature = hottest * COLDEST ** (sweep / max(1, sweeps - 1))
        for i in draw.permutation(qubo.size):
            gain = flips.gain(i)
            if gain <= 0.0 or draw.random() < np.exp(-gain / temperature):
                energy += gain
                flips.flip(i)
                if energy < best_energy:
                    best, best_energy = flips.mask.copy(), energy
    return best
