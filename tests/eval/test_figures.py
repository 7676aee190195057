"""Figures are drawn of real sums, also of empty ones."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nt_pretrain.eval.diversity import disagreement_matrix
from nt_pretrain.eval.figures import draw_heads_used, draw_pairs, draw_reliability, draw_risk_coverage
from nt_pretrain.eval.measure import Measures, quality_by_heads
from tests.eval.samples import made


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def colours(path: Path) -> int:
    return len(np.unique(pixels(path).reshape(-1, 3), axis=0))


def draw_all(measures: Measures, folder: Path) -> list[Path]:
    sums, matrix = measures.classification, disagreement_matrix(measures.diversity)
    return [
        draw_reliability(sums, folder / "reliability.png"),
        draw_risk_coverage(sums, folder / "risk_coverage.png"),
        draw_pairs(matrix, folder / "disagreement.png", title="disagreement"),
        draw_pairs(matrix, folder / "overlap.png", title="overlap of masks", expected=matrix * 0.5),
        draw_heads_used(quality_by_heads(measures), folder / "heads_used.png"),
    ]


def test_pictures_have_something_on_them(tmp_path: Path) -> None:
    measures = Measures.zeros(3)
    measures.add(*made(300, 9))
    drawn = draw_all(measures, tmp_path / "report")
    for path in drawn:
        assert path.is_file() and colours(path) > 30, path.name
    assert not np.array_equal(pixels(drawn[2]), pixels(drawn[3])), "the expectation is written below"


def test_other_samples_give_another_picture(tmp_path: Path) -> None:
    sums = []
    for sure in (1.0, 6.0):
        measures = Measures.zeros(2)
        measures.add(*made(300, 9, heads=2, sure=sure))
        sums.append(measures.classification)
    one, other = (draw_reliability(each, tmp_path / f"{index}.png") for index, each in enumerate(sums))
    assert not np.array_equal(pixels(one), pixels(other))


def test_nothing_measured_draws_empty_axes(tmp_path: Path) -> None:
    measures = Measures.zeros(2)
    measures.add(torch.zeros(2, 3, 4), torch.full((3,), -100))
    assert all(path.is_file() for path in draw_all(measures, tmp_path))
