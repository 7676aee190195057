"""The choice of neurons as a quadratic problem of zeros and ones (QUBO).

Of a layer with activations H [S, n] of S samples and outgoing weights V [n, C], bit m_i says whether neuron i is kept.
With Y [S, C] the target and B [S, C] what is not decided here, the squared error is

    E(m) = || Y - B - H diag(m) V ||^2 = m^T Q m + c^T m + || R ||^2,    R = Y - B,
    Q = (H^T H) o (V V^T),    c_i = -2 (H^T R V^T)_ii = -2 sum_k (H^T R)_ik V_ik,

exactly, since the layer is linear behind its activations; o is the product of elements. Samples enter by H^T H and
H^T R only, which are sums that batches add up, so no activation is kept. Where the target is the layer's own output of
all its neurons, R = H V and c = -2 Q 1: then E(m) = (1 - m)^T Q (1 - m), least where all are kept, and every neuron
needs a price for anything to be left out.

Source: T. Whitaker, "Quantum Neuron Selection" (arXiv 2302.05984), which proposes to search local groups; the algebra
is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Qubo:
    """E(m) = m^T ``quadratic`` m + ``linear`` . m + ``constant`` for m in {0, 1}^n.

    ``quadratic`` [n, n] is symmetric; its diagonal counts like ``linear``, since m_i^2 = m_i. All fp64.
    """

    quadratic: np.ndarray
    linear: np.ndarray
    constant: float

    @property
    def size(self) -> int:
        return len(self.linear)

    def energy(self, masks: np.ndarray) -> np.ndarray:
        """Energies [...] of ``masks`` [..., n] of zeros and ones (or bools)."""
        m = masks.astype(np.float64)
        energies: np.ndarray = np.einsum("...i,...i->...", m @ self.quadratic, m) + m @ self.linear + self.constant
        return energies

    def with_price(self, price: float) -> Qubo:
        """The same, where every neuron kept costs ``price`` more."""
        return Qubo(self.quadratic, self.linear + price, self.constant)

    def group(self, members: np.ndarray, mask: np.ndarray) -> Qubo:
        """The problem of the neurons ``members`` alone, all others as ``mask`` [n] has them."""
        fixed = mask.astype(np.float64)
        fixed[members] = 0.0
        field_of_others = 2.0 * self.quadratic[members] @ fixed
        return Qubo(
            self.quadratic[np.ix_(members, members)], self.linear[members] + field_of_others, float(self.energy(fixed))
        )


@dataclass
class LayerSums:
    """Sums over samples from which the problem of a layer is made: fp64, n^2 + n C numbers whatever the samples.

    Attributes:
        gram: H^T H [n, n].
        towards: H^T R [n, C].
        target: || R ||^2.
        samples: rows of H that were added.
    """

    gram: np.ndarray
    towards: np.ndarray
    target: float = field(default=0.0)
    samples: int = field(default=0)

    @staticmethod
    def zeros(neurons: int, outputs: int) -> LayerSums:
        return LayerSums(np.zeros((neurons, neurons)), np.zeros((neurons, outputs)))

    def add(self, activations: np.ndarray, residual: np.ndarray) -> None:
        """Add samples: H [S, n] and R = Y - B [S, C]."""
        h, r = activations.astype(np.float64, copy=False), residual.astype(np.float64, copy=False)
        self.gram += h.T @ h
        self.towards += h.T @ r
        self.target += float((r * r).sum())
        self.samples += len(h)

    def qubo(self, outgoing: np.ndarray) -> Qubo:
        """The problem of all neurons, with outgoing weights V [n, C].

        Raises:
            ValueError: no sample was added.
        """
        if not self.samples:
            raise ValueError("a selection needs at least one sample, and none was given")
        v = outgoing.astype(np.float64, copy=False)
        return Qubo(self.gram * (v @ v.T), -2.0 * (self.towards * v).sum(axis=1), self.target)


def own_output_qubo(gram: np.ndarray, outgoing: np.ndarray) -> Qubo:
    """The problem whose target is the layer's own output H V of all neurons: H^T H [n, n], V [n, C]."""
    v = outgoing.astype(np.float64, copy=False)
    quadratic = gram * (v @ v.T)
    return Qubo(quadratic, -2.0 * quadratic.sum(axis=1), float(quadratic.sum()))
