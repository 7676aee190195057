"""Steepest descent: the bit whose flip lowers the energy most is flipped, until none does."""

from __future__ import annotations

import numpy as np

from nt_pretrain.selection.qubo import Qubo


class Flips:
    """A mask [n], and what the energy changes by when each neuron alone is flipped.

    A flip costs n additions: the field that the others make is kept, not computed again.
    """

    def __init__(self, qubo: Qubo, mask: np.ndarray) -> None:
        self.mask = mask.copy()
        self._quadratic, self._diagonal = qubo.quadratic, np.diag(qubo.quadratic)
        self._own = qubo.linear + 2.0 * qubo.quadratic @ mask.astype(np.float64)

    def gains(self) -> np.ndarray:
        """Changes of energy [n]; below 0 a flip is for the better."""
        gains: np.ndarray = np.where(self.mask, self._diagonal - self._own, self._own + self._diagonal)
        return gains

    def gain(self, i: int) -> float:
        """That of one neuron."""
        own, diagonal = float(self._own[i]), float(self._diagonal[i])
        return diagonal - own if self.mask[i] else own + diagonal

    def flip(self, i: int) -> None:
        self._own += self._quadratic[i] * (-2.0 if self.mask[i] else 2.0)
        self.mask[i] = not self.mask[i]


def greedy(qubo: Qubo, start: np.ndarray | None = None) -> np.ndarray:
    """A mask [n] that no single flip improves, from ``start`` on (None: nothing kept)."""
    flips = Flips(qubo, np.zeros(qubo.size, dtype=bool) if start is None else start)
    gains = flips.gains()
    # Rounding must not let two masks of one energy follow each other for ever.
    least = 1e-9 * (np.abs(qubo.linear).max(initial=0.0) + np.abs(qubo.quadratic).max(initial=0.0))
    while gains[best := int(gains.argmin())] < -least:
        flips.flip(best)
        gains = flips.gains()
    return flips.mask
