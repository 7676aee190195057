"""A whole layer, group by group: each group is solved with all others as they are, until a round changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nt_pretrain.selection.greedy import greedy
from nt_pretrain.selection.qubo import Qubo
from nt_pretrain.selection.solvers import Solver, seed_of

BISECTIONS = 40


@dataclass(frozen=True)
class Selected:
    """What was chosen.

    Attributes:
        mask: [n], of all neurons of the layer.
        energies: of the whole layer, at the start and after every round.
    """

    mask: np.ndarray
    energies: list[float]


def groups_of(size: int, group: int, *, seed: int) -> list[np.ndarray]:
    """The numbers of ``size`` neurons in random groups of ``group`` (the last may be smaller)."""
    order = np.random.default_rng(seed_of(seed, "groups")).permutation(size)
    return [np.sort(order[first : first + group]) for first in range(0, size, group)]


def descend(
    qubo: Qubo,
    solver: Solver,
    *,
    group: int,
    rounds: int,
    seed: int,
    start: np.ndarray,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Selected:
    """Block coordinate descent over random groups, drawn anew every round.

    A group keeps the bits it has where the solver finds none that are better, so the energy never rises.

    Args:
        rounds: at most.
        start: [n], the bits to begin with.
        progress: told groups done, and of how many at most.
    """
    mask, energies, done = start.copy(), [float(qubo.energy(start))], 0
    for number in range(rounds):
        changed = False
        groups = groups_of(qubo.size, group, seed=seed_of(seed, "round", number))
        for place, members in enumerate(groups):
            local = qubo.group(members, mask)
            found = solver.solve(local, seed=seed_of(seed, "solve", number, place)).mask
            if local.energy(found) < local.energy(mask[members]):
                changed |= bool((found != mask[members]).any())
                mask[members] = found
            done += 1
            progress(done, rounds * len(groups))
        energies.append(float(qubo.energy(mask)))
        if not changed:
            break
    return Selected(mask, energies)


def price_for(qubo: Qubo, kept: int) -> float:
    """The price of a neuron at which steepest descent from all neurons keeps about ``kept`` of them.

    Raises:
        ValueError: ``kept`` is no number of neurons of this layer.
    """
    if not 0 < kept <= qubo.size:
        raise ValueError(f"{kept} neurons cannot be kept of {qubo.size}")
    everything = np.ones(qubo.size, dtype=bool)
    low, high = 0.0, float(np.abs(qubo.linear).max() + np.abs(qubo.quadratic).sum(axis=1).max()) + 1e-300
    best, distance = 0.0, abs(int(greedy(qubo, everything).sum()) - kept)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        count = int(greedy(qubo.with_price(middle), everything).sum())
        if abs(count - kept) < distance:
            best, distance = middle, abs(count - kept)
        if not distance:
            break
        low, high = (middle, high) if count > kept else (low, middle)
    return best
