"""The demonstration: handwritten digits, a random layer of ReLU neurons that is never trained, only selected from.

Task: scikit-learn's 1,797 digits of 8 x 8 pixels; targets are one-hot. Hidden and outgoing weights are drawn once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.selection.descent import descend, groups_of
from nt_pretrain.selection.greedy import greedy
from nt_pretrain.selection.qubo import LayerSums, Qubo
from nt_pretrain.selection.solvers import Row, Solver, compare, seed_of

TRAINING = 1200
"""Of the digits, in random order; the others are held out."""
CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Activations of the neurons for training and held-out digits, their labels, and the outgoing weights [n, 10]."""

    activations: np.ndarray
    labels: np.ndarray
    held_activations: np.ndarray
    held_labels: np.ndarray
    outgoing: np.ndarray

    def qubo(self) -> Qubo:
        sums = LayerSums.zeros(*self.outgoing.shape)
        sums.add(self.activations, np.eye(CLASSES)[self.labels])
        return sums.qubo(self.outgoing)

    def accuracy(self, mask: np.ndarray) -> float:
        """On the held-out digits, of the neurons in ``mask`` [n]."""
        return self._right(self.outgoing * mask[:, None])

    def least_squares_accuracy(self) -> float:
        """The same with outgoing weights fitted by least squares: what training that one layer gives."""
        fitted, *_ = np.linalg.lstsq(self.activations, np.eye(CLASSES)[self.labels], rcond=None)
        return self._right(fitted)

    def _right(self, outgoing: np.ndarray) -> float:
        return float(((self.held_activations @ outgoing).argmax(axis=1) == self.held_labels).mean())


def load_digits(neurons: int, *, seed: int) -> Digits:
    """The digits and a random layer of ``neurons``.

    Raises:
        ConfigErrors: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise ConfigErrors(
            ["--demo digits: scikit-learn, which has the digits, is not installed; pip install scikit-learn"]
        ) from None
    found = datasets.load_digits()
    draw = np.random.default_rng(seed_of(seed, "digits"))
    order = draw.permutation(len(found.target))
    pixels, labels = found.data[order] / 16.0, found.target[order]
    pixels = pixels - pixels[:TRAINING].mean(axis=0)
    incoming = draw.standard_normal((pixels.shape[1], neurons)) * (2.0 / pixels.shape[1]) ** 0.5
    activations = np.maximum(pixels @ incoming, 0.0)
    outgoing = draw.standard_normal((neurons, CLASSES)) / neurons**0.5
    return Digits(
        activations[:TRAINING], labels[:TRAINING], activations[TRAINING:], labels[TRAINING:], outgoing
    )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A selection of the whole layer: who made it, accuracy on held-out digits, neurons kept, energy, the mask [n]."""

    label: str
    accuracy: float
    kept: int
    energy: float
    mask: np.ndarray


@dataclass(frozen=True)
class Demo:
    """What was found.

    Attributes:
        rows: the solvers on the same first groups.
        choices: of the whole layer; first all neurons, then random selections (a mean), then the solvers'.
        least_squares: accuracy with fitted outgoing weights.
    """

    rows: list[Row]
    choices: list[Choice]
    least_squares: float


RANDOM_SELECTIONS = 20


def run_digits(
    neurons: int,
    solvers: list[Solver],
    *,
    group: int,
    rounds: int,
    compared: int,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Demo:
    """Compare ``solvers`` on ``compared`` groups, then let each select from the whole layer.

    Errors as those of :func:`load_digits` and of the solvers.
    """
    digits = load_digits(neurons, seed=seed)
    qubo = digits.qubo()
    start = np.random.default_rng(seed_of(seed, "start")).random(neurons) < 0.5
    groups = groups_of(neurons, group, seed=seed_of(seed, "round", 0))[:compared]
    rows = compare([qubo.group(members, start) for members in groups], solvers, seed=seed)
    everything = np.ones(neurons, dtype=bool)
    choices = [Choice("all neurons", digits.accuracy(everything), neurons, float(qubo.energy(everything)), everything)]
    found = []
    for solver in solvers:
        chosen = descend(
            qubo, solver, group=group, rounds=rounds, seed=seed, start=start,
            progress=partial(progress, solver.label),
        )  # fmt: skip
        mask = chosen.mask
        found.append(Choice(solver.label, digits.accuracy(mask), int(mask.sum()), chosen.energies[-1], mask))
    choices.append(_random(digits, qubo, kept=found[0].kept if found else neurons // 2, seed=seed))
    whole = greedy(qubo, start)  # what no quantum register could hold costs steepest descent nothing
    label = "greedy, no groups"
    found.append(Choice(label, digits.accuracy(whole), int(whole.sum()), float(qubo.energy(whole)), whole))
    return Demo(rows, choices + found, digits.least_squares_accuracy())


def _random(digits: Digits, qubo: Qubo, *, kept: int, seed: int) -> Choice:
    """The mean of random selections of as many neurons; the mask is that of the last."""
    draw = np.random.default_rng(seed_of(seed, "random selections"))
    accuracies, energies = [], []
    mask = np.zeros(qubo.size, dtype=bool)
    for _ in range(RANDOM_SELECTIONS):
        mask = np.zeros(qubo.size, dtype=bool)
        mask[draw.permutation(qubo.size)[:kept]] = True
        accuracies.append(digits.accuracy(mask))
        energies.append(float(qubo.energy(mask)))
    label = f"random (mean of {RANDOM_SELECTIONS})"
    return Choice(label, float(np.mean(accuracies)), kept, float(np.mean(energies)), mask)
