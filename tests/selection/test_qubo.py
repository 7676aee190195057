"""The quadratic problem is the squared error, of every mask, and so is that of a group among fixed neurons."""

from __future__ import annotations

import numpy as np
import pytest

from nt_pretrain.selection.exact import all_energies, exact, mask_of, number_of
from nt_pretrain.selection.qubo import LayerSums, Qubo, own_output_qubo

DRAW = np.random.default_rng(5)
H, V = DRAW.standard_normal((40, 9)), DRAW.standard_normal((9, 4))
Y, B = DRAW.standard_normal((40, 4)), DRAW.standard_normal((40, 4))


def sums_of(*pieces: slice) -> LayerSums:
    sums = LayerSums.zeros(9, 4)
    for piece in pieces:
        sums.add(H[piece], (Y - B)[piece])
    return sums


def all_masks(size: int) -> list[np.ndarray]:
    return [mask_of(number, size) for number in range(1 << size)]


def test_energies_are_the_squared_errors_of_all_masks() -> None:
    qubo = sums_of(slice(None)).qubo(V)
    direct = [float(((Y - B - H @ np.diag(mask.astype(float)) @ V) ** 2).sum()) for mask in all_masks(9)]
    np.testing.assert_allclose(qubo.energy(np.stack(all_masks(9))), direct, rtol=1e-12)
    np.testing.assert_allclose(all_energies(qubo), direct, rtol=1e-12)
    assert (exact(qubo) == all_masks(9)[int(np.argmin(direct))]).all()


def test_samples_may_come_in_pieces() -> None:
    whole, pieces = sums_of(slice(None)).qubo(V), sums_of(slice(0, 7), slice(7, None)).qubo(V)
    np.testing.assert_allclose(pieces.quadratic, whole.quadratic, rtol=1e-12)
    np.testing.assert_allclose(pieces.linear, whole.linear, rtol=1e-12)
    assert pieces.constant == pytest.approx(whole.constant)


def test_a_group_among_fixed_neurons_has_the_energies_of_the_whole() -> None:
    qubo, members = sums_of(slice(None)).qubo(V), np.array([1, 4, 8])
    fixed = DRAW.random(9) < 0.5
    for mask, energy in zip(all_masks(3), all_energies(qubo.group(members, fixed)), strict=True):
        whole = fixed.copy()
        whole[members] = mask
        assert energy == pytest.approx(float(qubo.energy(whole)), rel=1e-12)


def test_of_its_own_output_a_layer_loses_nothing_when_all_are_kept() -> None:
    qubo = own_output_qubo(H.T @ H, V)
    assert float(qubo.energy(np.ones(9))) == pytest.approx(0.0, abs=1e-9)
    for mask in all_masks(9)[::17]:
        direct = float(((H @ V - H @ np.diag(mask.astype(float)) @ V) ** 2).sum())
        assert float(qubo.energy(mask)) == pytest.approx(direct, rel=1e-9, abs=1e-9)
    assert exact(qubo).all() and not exact(qubo.with_price(1e6)).any()


def test_numbers_and_masks_are_each_others_inverse() -> None:
    assert [number_of(mask) for mask in all_masks(6)] == list(range(64))


def test_what_cannot_be_done_is_told() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        LayerSums.zeros(9, 4).qubo(V)
    with pytest.raises(ValueError, match="21 neurons has 2\\*\\*21 masks"):
        all_energies(Qubo(np.zeros((21, 21)), np.zeros(21), 0.0))
