"""Solvers of one group: the simulated register is a quantum state, and nobody beats the list of all masks."""

from __future__ import annotations

import numpy as np
import pytest

from nt_pretrain.selection.annealing import annealing
from nt_pretrain.selection.descent import descend, groups_of, price_for
from nt_pretrain.selection.exact import all_energies, exact
from nt_pretrain.selection.greedy import Flips, greedy
from nt_pretrain.selection.grover import expected_draws, oracle_calls
from nt_pretrain.selection.nelder_mead import nelder_mead
from nt_pretrain.selection.qaoa import best_masks, qaoa, standardised, state
from nt_pretrain.selection.qubo import LayerSums, Qubo, own_output_qubo
from nt_pretrain.selection.solvers import NAMES, Solver, compare


def problem(size: int, seed: int) -> Qubo:
    draw = np.random.default_rng(seed)
    sums = LayerSums.zeros(size, 3)
    sums.add(np.maximum(draw.standard_normal((50, size)), 0.0), draw.standard_normal((50, 3)))
    return sums.qubo(draw.standard_normal((size, 3)))


def exponential(matrix: np.ndarray) -> np.ndarray:
    """exp(-i ``matrix``) of a symmetric one, by its eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    result: np.ndarray = (vectors * np.exp(-1j * values)) @ vectors.T
    return result


def sum_of_flips(size: int) -> np.ndarray:
    """sum_q X_q as a whole matrix [2**n, 2**n]."""
    numbers = np.arange(1 << size)
    matrix = np.zeros((1 << size, 1 << size))
    for qubit in range(size):
        matrix[numbers, numbers ^ (1 << qubit)] = 1.0
    return matrix


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_state_is_that_of_whole_matrix_exponentials(layers: int) -> None:
    energies = standardised(all_energies(problem(5, 1)))
    angles = np.random.default_rng(layers).uniform(-2.0, 2.0, (2, layers))
    expected = np.full(32, 32**-0.5, dtype=np.complex128)
    for phase, rotation in angles.T:
        expected = exponential(rotation * sum_of_flips(5)) @ exponential(phase * np.diag(energies)) @ expected
    found = state(energies, angles)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert float((np.abs(found) ** 2).sum()) == pytest.approx(1.0, abs=1e-12)


def test_nobody_is_better_than_the_best_of_all_masks() -> None:
    for seed in range(6):
        qubo = problem(8, seed)
        energies = all_energies(qubo)
        least = float(energies.min())
        assert float(qubo.energy(exact(qubo))) == pytest.approx(least)
        others = [greedy(qubo), annealing(qubo, sweeps=30, seed=seed), qaoa(qubo, layers=1, shots=16, seed=seed).mask]
        assert all(float(qubo.energy(mask)) >= least - 1e-9 for mask in others)
        # No single flip improves what steepest descent ends with.
        assert Flips(qubo, greedy(qubo)).gains().min() > -1e-6


def test_flips_are_told_what_they_change_after_many_of_them() -> None:
    qubo, draw = problem(8, 3), np.random.default_rng(0)
    flips = Flips(qubo, draw.random(8) < 0.5)
    for i in draw.integers(8, size=40):
        before, gain = float(qubo.energy(flips.mask)), flips.gain(int(i))
        assert gain == pytest.approx(flips.gains()[i])
        flips.flip(int(i))
        assert float(qubo.energy(flips.mask)) - before == pytest.approx(gain, rel=1e-9, abs=1e-9)


def test_optimised_angles_make_the_best_masks_likelier_but_no_more_than_certain() -> None:
    qubo = problem(10, 2)
    found = qaoa(qubo, layers=2, shots=64, seed=0)
    assert found.uniform_probability == len(best_masks(all_energies(qubo))) / 1024
    assert 5 * found.uniform_probability < found.best_probability <= 1.0
    assert found.angles.shape == (2, 2)


def test_the_comparison_has_sane_figures() -> None:
    rows = compare([problem(8, seed) for seed in range(3)], [Solver(name, layers=1) for name in NAMES], seed=0)
    assert [row.label for row in rows] == ["uniform draws", "exact", "greedy", "annealing", "qaoa p=1"]
    best = rows[1]
    assert best.gap == 0.0 and best.optimal == 1.0
    assert all(0.0 <= row.gap < 1.0 and 0.0 <= row.optimal <= 1.0 for row in rows)
    assert rows[0].best_ratio == 1.0 and best.best_ratio is None
    assert rows[-1].best_ratio is not None and 1.0 < rows[-1].best_ratio <= 256 / 3
    again = compare([problem(8, seed) for seed in range(3)], [Solver("qaoa", layers=1)], seed=0)
    assert (again[1].gap, again[1].best_ratio) == (rows[-1].gap, rows[-1].best_ratio)


def test_groups_hold_every_neuron_once_and_descent_never_rises() -> None:
    groups = groups_of(50, 12, seed=3)
    assert sorted(np.concatenate(groups)) == list(range(50)) and [len(each) for each in groups] == [12, 12, 12, 12, 2]
    qubo, start = problem(50, 4), np.random.default_rng(1).random(50) < 0.5
    for name in NAMES:
        solver = Solver(name, layers=1, shots=8, sweeps=10)
        found = descend(qubo, solver, group=6, rounds=2, seed=0, start=start)
        assert found.energies == sorted(found.energies, reverse=True) and found.energies[-1] < found.energies[0]
        assert found.energies[-1] == pytest.approx(float(qubo.energy(found.mask)))


def test_a_price_keeps_about_as_many_neurons_as_are_wanted() -> None:
    draw = np.random.default_rng(0)
    h, v = np.maximum(draw.standard_normal((100, 40)), 0.0), draw.standard_normal((40, 12))
    qubo = own_output_qubo(h.T @ h, v)
    for kept in (10, 20, 30):
        found = greedy(qubo.with_price(price_for(qubo, kept)), np.ones(40, dtype=bool))
        assert abs(int(found.sum()) - kept) <= 2
    with pytest.raises(ValueError, match="cannot be kept"):
        price_for(qubo, 41)


def test_the_simplex_finds_a_minimum() -> None:
    point, value = nelder_mead(
        lambda x: float((x[0] - 1) ** 2 + 5 * (x[1] + x[0]) ** 2), np.zeros(2), step=0.3, evaluations=150
    )
    assert value < 1e-6 and point == pytest.approx([1.0, -1.0], abs=1e-2)


def test_grovers_figures_are_those_of_the_formula() -> None:
    assert (oracle_calls(4096, 41), oracle_calls(4096, 1)) == (8, 50)
    assert expected_draws(4096, 1) == 4096
