"""Fitted temperatures against scikit-learn's own and against scipy; the same for any pieces."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from nt_pretrain.eval.calibration import equal_width_error
from nt_pretrain.eval.measure import Measures, values_of
from nt_pretrain.eval.temperature import LARGEST, LEAST, fit_temperatures
from tests.eval.samples import made


def best(scores: torch.Tensor, labels: torch.Tensor) -> float:
    def nll(u: float) -> float:
        return float(F.cross_entropy(scores.double() / math.exp(u), labels))

    return math.exp(minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10}).x)


def test_each_member_gets_its_own():
    logits, labels = made(400, 8, sure=5.0)
    logits[1] *= 0.05
    fitted = fit_temperatures(lambda: [(logits, labels)], heads=3)
    z = logits.double()
    scores = [*z, z.softmax(-1).mean(0).log(), z.mean(0)]
    assert fitted.values.tolist() == pytest.approx([best(each, labels) for each in scores], rel=1e-5)
    assert float(fitted.values[0]) > 2 and float(fitted.values[1]) < 0.5
    assert fitted.samples == 400 and fitted.undecided == () and fitted.passes < 15


def test_pieces_and_ignored_samples_leave_no_trace():
    logits, labels = made(203, 8, sure=5.0)
    whole = fit_temperatures(lambda: [(logits, labels)], heads=3).values
    more = torch.cat([labels, torch.full((5,), -100)])
    padded = torch.cat([logits, torch.full((3, 5, 8), 9.0)], dim=1)
    for size in (1, 7, 64):
        pieces = list(zip(padded.split(size, dim=1), more.split(size), strict=True))
        assert torch.equal(fit_temperatures(lambda pieces=pieces: reversed(pieces), heads=3).values, whole)


def test_ranks_that_add_up_get_the_same():
    logits, labels = made(90, 8, sure=5.0)
    whole = fit_temperatures(lambda: [(logits, labels)], heads=3)
    # One rank without samples beside one with all.
    assert torch.equal(
        fit_temperatures(lambda: [(logits[:, :40], labels[:40])], 3, add_up=_Other(logits[:, 40:], labels[40:])).values,
        whole.values,
    )


class _Other:
    """The other rank, in step with this one: it has the same temperatures in each pass."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.logits, self.labels, self.mine = logits, labels, []

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        tables = []

        class Enough(Exception):
            pass

        def record(other: torch.Tensor) -> torch.Tensor:
            tables.append(other)
            if len(tables) > len(self.mine):
                raise Enough
            return other + self.mine[len(tables) - 1]

        with pytest.raises(Enough):
            fit_temperatures(lambda: [(self.logits, self.labels)], 3, add_up=record)
        self.mine.append(table.clone())
        return table + tables[-1]


def test_calibration_improves_what_was_held_out_and_leaves_accuracy():
    logits, labels = made(600, 8, sure=6.0)
    fitted = fit_temperatures(lambda: [(logits[:, :300], labels[:300])], heads=3)
    raw, calibrated = Measures.zeros(3), Measures.zeros(3, temperatures=fitted.values)
    for measures in (raw, calibrated):
        measures.add(logits[:, 300:], labels[300:])
    for member in range(5):
        before, after = (equal_width_error(m.classification.bins[member]) for m in (raw, calibrated))
        assert after < before
    before, after = values_of(raw)["ensemble"], values_of(calibrated)["ensemble"]
    assert after["nll"] < before["nll"] and after["accuracy"] == before["accuracy"]


def test_samples_that_decide_no_temperature_are_told():
    logits = torch.eye(4)[None].repeat(2, 3, 1)
    right = fit_temperatures(lambda: [(logits, torch.arange(4).repeat(3))], heads=2)
    assert right.undecided == (0, 1, 2, 3) and (right.values < 0.1).all() and (right.values >= LEAST).all()
    wrong = fit_temperatures(lambda: [(logits, (torch.arange(4).repeat(3) + 1) % 4)], heads=2)
    assert wrong.undecided == (0, 1, 2, 3) and wrong.values.tolist() == pytest.approx([LARGEST] * 4, rel=1e-2)


def test_one_class_needs_no_temperature():
    fitted = fit_temperatures(lambda: [(torch.zeros(2, 5, 1), torch.zeros(5, dtype=torch.int64))], heads=2)
    assert fitted.values.tolist() == [1.0] * 4 and fitted.undecided == (0, 1, 2, 3)


def test_nothing_to_fit_is_told():
    logits, labels = made(5, 3)
    with pytest.raises(ValueError, match="of 0 samples with a label"):
        fit_temperatures(lambda: [(logits, torch.full((5,), -100))], heads=3)
    logits[0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="of 5 samples with a label, 1 have a logit that is nan"):
        fit_temperatures(lambda: [(logits, labels)], heads=3)
