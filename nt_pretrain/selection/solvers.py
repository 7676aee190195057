"""The solvers by name, and one group of neurons given to all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nt_pretrain.counter_random import key_of
from nt_pretrain.selection.annealing import annealing
from nt_pretrain.selection.exact import all_energies, exact, number_of
from nt_pretrain.selection.greedy import greedy
from nt_pretrain.selection.qaoa import best_masks, qaoa
from nt_pretrain.selection.qubo import Qubo

Name = Literal["exact", "greedy", "annealing", "qaoa"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Solver:
    """One of the solvers with its options.

    Attributes:
        layers: p of QAOA.
        shots: masks that QAOA draws, of which the best is kept.
        sweeps: of annealing.
    """

    name: Name = "exact"
    layers: int = 3
    shots: int = 64
    sweeps: int = 60

    @property
    def label(self) -> str:
        return f"qaoa p={self.layers}" if self.name == "qaoa" else self.name

    def solve(self, qubo: Qubo, *, seed: int) -> Solved:
        """A mask of ``qubo``. Errors as those of the solvers: groups too large to be enumerated."""
        if self.name == "exact":
            return Solved(exact(qubo))
        if self.name == "greedy":
            return Solved(greedy(qubo))
        if self.name == "annealing":
            return Solved(annealing(qubo, sweeps=self.sweeps, seed=seed))
        found = qaoa(qubo, layers=self.layers, shots=self.shots, seed=seed)
        return Solved(found.mask, found.best_probability / found.uniform_probability)


@dataclass(frozen=True)
class Solved:
    """A mask [n]; of QAOA also how many times likelier than a uniform draw one of its draws is among the best 1%."""

    mask: np.ndarray
    best_ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """What one solver did to some groups: means over them.

    Attributes:
        gap: energy above the group's optimum, as a share of what a random mask is above it on average.
        optimal: share of the groups whose optimum it found.
        best_ratio: probability that one draw is among the best 1%, in times of a uniform draw; None where nothing is
            drawn.
        shots: masks drawn for a group; None where nothing is.
        seconds: for a group.
    """

    label: str
    gap: float
    optimal: float
    best_ratio: float | None
    shots: int | None
    seconds: float


def compare(groups: list[Qubo], solvers: list[Solver], *, seed: int) -> list[Row]:
    """Every solver on the same groups, and so many uniform draws as QAOA has shots.

    Raises:
        ValueError: a group is too large to be enumerated.
    """
    tables = [all_energies(group) for group in groups]
    shots = max((solver.shots for solver in solvers if solver.name == "qaoa"), default=64)
    rows = [_uniform(tables, shots, seed)]
    for solver in solvers:
        gaps, ratios, begin = [], [], time.perf_counter()
        for number, (group, energies) in enumerate(zip(groups, tables, strict=True)):
            solved = solver.solve(group, seed=seed_of(seed, "compare", number))
            gaps.append(_gap(energies, number_of(solved.mask)))
            ratios += [] if solved.best_ratio is None else [solved.best_ratio]
        seconds = (time.perf_counter() - begin) / len(groups)
        draws = solver.shots if solver.name == "qaoa" else None
        rows.append(Row(solver.label, *_means(gaps), float(np.mean(ratios)) if ratios else None, draws, seconds))
    return rows


def best_share_counts(size: int) -> tuple[int, int]:
    """Masks of ``size`` neurons, and how many of them count as the best 1%."""
    return 1 << size, len(best_masks(np.zeros(1 << size)))


def seed_of(seed: int, *parts: object) -> int:
    """A seed of its own for every draw, whatever was drawn before."""
    return key_of(seed, *parts) & 0x7FFFFFFFFFFFFFFF


def _uniform(tables: list[np.ndarray], shots: int, seed: int) -> Row:
    gaps, begin = [], time.perf_counter()
    for number, energies in enumerate(tables):
        drawn = np.random.default_rng(seed_of(seed, "uniform", number)).integers(len(energies), size=shots)
        gaps.append(_gap(energies, int(drawn[energies[drawn].argmin()])))
    seconds = (time.perf_counter() - begin) / len(tables)
    return Row("uniform draws", *_means(gaps), 1.0, shots, seconds)


def _gap(energies: np.ndarray, number: int) -> float:
    lowest, spread = float(energies.min()), float(energies.mean() - energies.min())
    above = float(energies[number]) - lowest
    return above / spread if spread > 0.0 else 0.0


def _means(gaps: list[float]) -> tuple[float, float]:
    return float(np.mean(gaps)), float(np.mean([gap < 1e-9 for gap in gaps]))


def table_lines(rows: list[Row]) -> Iterator[str]:
    """The comparison for people, a line a solver."""
    yield f"{'solver':<14}{'gap':>9}{'optimum':>10}{'best 1%':>10}{'shots':>7}{'s/group':>10}"
    for row in rows:
        ratio = "" if row.best_ratio is None else f"{row.best_ratio:.1f}x"
        shots = "" if row.shots is None else f"{row.shots}"
        yield f"{row.label:<14}{row.gap:>9.4f}{row.optimal:>10.0%}{ratio:>10}{shots:>7}{row.seconds:>10.4f}"
