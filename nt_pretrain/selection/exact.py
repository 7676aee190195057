"""All masks of a group, and the best of them."""

from __future__ import annotations

import numpy as np

from nt_pretrain.selection.qubo import Qubo

LARGEST = 20
"""Neurons of a group: 2**20 energies are 8 MB and fractions of a second, and each more neuron doubles both."""


def all_energies(qubo: Qubo) -> np.ndarray:
    """Energies [2**n] of all masks; bit i of a mask's number is neuron i.

    By doubling: masks with neuron i are those without it, plus i's own energy and its field of the lower neurons. 2**n
    times n additions in all.

    Raises:
        ValueError: more than LARGEST neurons.
    """
    if qubo.size > LARGEST:
        raise ValueError(f"a group of {qubo.size} neurons has 2**{qubo.size} masks; at most {LARGEST} are enumerated")
    energies = np.full(1, qubo.constant)
    for i in range(qubo.size):
        added = np.full(1, qubo.linear[i] + qubo.quadratic[i, i])
        for j in range(i):
            added = np.concatenate([added, added + 2.0 * qubo.quadratic[i, j]])
        energies = np.concatenate([energies, energies + added])
    return energies


def mask_of(number: int, size: int) -> np.ndarray:
    """Mask [n] (bool) by its number."""
    return (number >> np.arange(size)) & 1 == 1


def number_of(mask: np.ndarray) -> int:
    """Number of a mask [n]."""
    return int((mask.astype(np.int64) << np.arange(len(mask))).sum())


def exact(qubo: Qubo) -> np.ndarray:
    """The mask [n] of least energy; of equal ones that of the smallest number. Errors as :func:`all_energies`."""
    return mask_of(int(all_energies(qubo).argmin()), qubo.size)
