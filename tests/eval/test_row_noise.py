"""Noise on rows: of the deviation it says, by the number of a row alone."""

from __future__ import annotations

import pytest
import torch

from nt_pretrain.eval.harms import harms_of
from nt_pretrain.eval.row_noise import DEVIATIONS, RowNoise


def test_it_has_the_deviation_of_its_severity() -> None:
    assert DEVIATIONS[2] == 0.3
    for severity, deviation in enumerate(DEVIATIONS, start=1):
        noise = RowNoise("gaussian_noise", severity, 0)
        found = torch.stack([noise(torch.ones(50), sample) - 1 for sample in range(200)])
        assert float(found.std()) == pytest.approx(deviation, rel=0.04)
        assert abs(float(found.mean())) < 4 * deviation / 100
        assert len(found.unique(dim=0)) == 200, "rows share their noise"


def test_the_number_of_a_row_decides_and_the_row_stays_as_it_was() -> None:
    row = torch.arange(6, dtype=torch.float32)
    noise = RowNoise("gaussian_noise", 3, 5)
    first = noise(row, 17)
    assert torch.equal(row, torch.arange(6.0)) and first.dtype == torch.float32
    assert torch.equal(first, RowNoise("gaussian_noise", 3, 5)(row, 17))
    assert not torch.equal(first, noise(row, 18)) and not torch.equal(first, RowNoise("gaussian_noise", 3, 6)(row, 17))


def test_it_is_the_harm_of_rows() -> None:
    assert [(harm.name, harm.amount) for harm in harms_of(["gaussian_noise"], data="rows")] == [
        ("gaussian_noise", (deviation,)) for deviation in DEVIATIONS
    ]
    with pytest.raises(ValueError, match="'jpeg' is not known; it is for pictures, and these data are rows"):
        harms_of(["jpeg"], data="rows")
