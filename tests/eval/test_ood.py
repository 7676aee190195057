"""AUROC and FPR95 against scikit-learn, ties included."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from nt_pretrain.eval.confidence_histogram import BUCKETS, bucket_of
from nt_pretrain.eval.ood import auroc, confidence_counts, fpr95
from tests.eval.samples import made


def counts(p: torch.Tensor) -> torch.Tensor:
    return torch.bincount(bucket_of(p.double()), minlength=BUCKETS)


def sklearns(inside: torch.Tensor, outside: torch.Tensor) -> tuple[float, float]:
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    scores = torch.cat([inside, outside]).numpy()
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(roc_auc_score(truth, scores)), float(false[np.argmax(true >= 0.95 - 1e-12)])


@pytest.mark.parametrize("levels", [3, 40, 100_000])
def test_against_scikit_learn(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    inside = (torch.rand(900, generator=generator, dtype=torch.float64).sqrt() * levels).round() / levels
    outside = (torch.rand(700, generator=generator, dtype=torch.float64) * levels).round() / levels
    found = auroc(counts(inside), counts(outside)), fpr95(counts(inside), counts(outside))
    # The same to the last digit on confidences rounded to buckets; near it on those that are not.
    assert found == pytest.approx(sklearns(bucket_of(inside), bucket_of(outside)), rel=1e-12)
    assert found == pytest.approx(sklearns(inside, outside), abs=2e-4 if levels < 1000 else 3e-3)


def test_ends():
    sure, unsure = torch.ones(40), torch.full((30,), 0.2)
    assert (auroc(counts(sure), counts(unsure)), fpr95(counts(sure), counts(unsure))) == (1.0, 0.0)
    assert (auroc(counts(unsure), counts(sure)), fpr95(counts(unsure), counts(sure))) == (0.0, 1.0)
    assert (auroc(counts(sure), counts(sure)), fpr95(counts(sure), counts(sure))) == (0.5, 1.0)
    assert math.isnan(auroc(counts(sure), counts(sure[:0]))) and math.isnan(fpr95(counts(sure[:0]), counts(sure)))


def test_of_logits():
    known, _ = made(300, 6, sure=4.0)
    foreign = torch.randn(3, 200, 6, generator=torch.Generator().manual_seed(9))
    (inside, broken), (outside, _) = confidence_counts(known), confidence_counts(foreign)
    assert inside.shape == (5, BUCKETS) and broken == 0
    for member, p in ((0, lambda z: z[0].double().softmax(-1)), (3, lambda z: z.double().softmax(-1).mean(0))):
        expected = sklearns(p(known).amax(-1), p(foreign).amax(-1))
        assert auroc(inside[member], outside[member]) == pytest.approx(expected[0], abs=1e-3)
    halves = confidence_counts(known[:, :100])[0] + confidence_counts(known[:, 100:])[0]
    assert torch.equal(halves, inside)
