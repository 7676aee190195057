"""QAOA on a simulated register of one qubit a neuron: the whole state vector, no noise, no approximation.

From the uniform state, p layers follow each other, each a phase by the energy and a rotation of every qubit:

    |g, b> = prod_l exp(-i b_l sum_q X_q) exp(-i g_l E) |+>^n.

The 2p angles are those that make the expected energy least, found by a classical search; measuring the state then draws
masks, of which the best is kept. Source: Farhi, Goldstone and Gutmann 2014 (arXiv 1411.4028).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nt_pretrain.selection.exact import all_energies, mask_of
from nt_pretrain.selection.nelder_mead import nelder_mead
from nt_pretrain.selection.qubo import Qubo

BEST_SHARE = 0.01
"""Masks that count as the best."""


@dataclass(frozen=True)
class Measured:
    """What a register of optimised angles gives.

    Attributes:
        mask: [n], the best of the masks drawn.
        angles: [2, p], of the phases (for energies of mean 0 and deviation 1) and of the rotations.
        best_probability: that a draw is among the best 1% of all masks.
        uniform_probability: the same of masks drawn uniformly.
    """

    mask: np.ndarray
    angles: np.ndarray
    best_probability: float
    uniform_probability: float


def qaoa(qubo: Qubo, *, layers: int, shots: int, seed: int, evaluations: int = 150) -> Measured:
    """Optimise the angles of ``layers`` layers, draw ``shots`` masks, keep the best.

    Args:
        evaluations: of the expected energy, while angles are searched.

    Raises:
        ValueError: more neurons than can be enumerated: a state has one amplitude for each mask.
    """
    energies = all_energies(qubo)
    scaled = standardised(energies)

    def expected(angles: np.ndarray) -> float:
        return float(np.abs(state(scaled, angles.reshape(2, -1))) ** 2 @ scaled)

    # A ramp: phases grow and rotations shrink, as in annealing.
    ramp = (np.arange(layers) + 0.5) / layers
    start = np.concatenate([0.6 * ramp, 0.6 * (1.0 - ramp)])
    angles, _ = nelder_mead(expected, start, step=0.3, evaluations=evaluations)
    probabilities = np.abs(state(scaled, angles.reshape(2, -1))) ** 2
    drawn = np.random.default_rng(seed).choice(len(energies), size=shots, p=probabilities / probabilities.sum())
    best = best_masks(energies)
    return Measured(
        mask_of(int(drawn[energies[drawn].argmin()]), qubo.size),
        angles.reshape(2, -1),
        float(probabilities[best].sum()),
        len(best) / len(energies),
    )


def state(energies: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Amplitudes [2**n] (complex) after the layers of ``angles`` [2, p] on ``energies`` [2**n]."""
    size = len(energies).bit_length() - 1
    amplitudes = np.full(len(energies), len(energies) ** -0.5, dtype=np.complex128)
    for phase, rotation in angles.T:
        amplitudes = amplitudes * np.exp(-1j * phase * energies)
        for qubit in range(size):
            amplitudes = rotated(amplitudes, qubit, rotation)
    return amplitudes


def rotated(amplitudes: np.ndarray, qubit: int, angle: float) -> np.ndarray:
    """exp(-i ``angle`` X) of one qubit."""
    pairs = amplitudes.reshape(-1, 2, 1 << qubit)
    return (np.cos(angle) * pairs - 1j * np.sin(angle) * pairs[:, ::-1]).reshape(-1)


def standardised(energies: np.ndarray) -> np.ndarray:
    """Energies of mean 0 and standard deviation 1, so that angles mean the same for every group."""
    spread = float(energies.std())
    return (energies - energies.mean()) / (spread if spread > 0.0 else 1.0)


def best_masks(energies: np.ndarray) -> np.ndarray:
    """Numbers of the best 1% of the masks, at least one."""
    count = max(1, round(BEST_SHARE * len(energies)))
    return np.argsort(energies, kind="stable")[:count]
