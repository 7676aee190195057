"""Accuracy, NLL and Brier score of members against torchmetrics, scikit-learn and direct computation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.text import perplexity as torchmetrics_perplexity

from nt_pretrain.eval.classification import ClassificationSums, classification_values
from nt_pretrain.eval.members import pieces, predictions
from tests.eval.samples import made, nasty


def values(logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
    sums = ClassificationSums.zeros(len(logits) + 2)
    for piece in pieces(logits, labels):
        sums.add(piece)
    return [classification_values(sums, member) for member in range(len(logits) + 2)]


def probabilities(logits: torch.Tensor) -> list[torch.Tensor]:
    p = logits.double().softmax(-1)
    return [*p, p.mean(0), logits.double().mean(0).softmax(-1)]


def test_against_the_libraries():
    logits, labels = made(500, 11)
    for found, p in zip(values(logits, labels), probabilities(logits), strict=True):
        y = labels.numpy()
        assert found["accuracy"] == accuracy_score(y, p.argmax(-1).numpy())
        assert found["accuracy"] == pytest.approx(
            float(multiclass_accuracy(p, labels, num_classes=11, average="micro")), rel=1e-6
        )
        assert found["accuracy_top5"] == top_k_accuracy_score(y, p.numpy(), k=5, labels=np.arange(11))
        assert found["nll"] == pytest.approx(log_loss(y, p.numpy(), labels=np.arange(11)), rel=1e-11)
        # Brier's own score (1950) runs from 0 to 2; scikit-learn halves it unless told not to.
        assert found["brier"] == pytest.approx(
            brier_score_loss(y, p.numpy(), scale_by_half=False, labels=np.arange(11)), rel=1e-11
        )


def test_perplexity_of_tokens_that_are_ignored_now_and_then():
    logits, labels = made(96, 31, heads=1)
    labels[::5] = -100
    found = values(logits.view(1, 4, 24, 31), labels.view(4, 24))[0]
    expected = torchmetrics_perplexity(logits[0].view(4, 24, 31), labels.view(4, 24), ignore_index=-100)
    assert found["perplexity"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", list(nasty()))
def test_nasty_inputs_are_measured_directly(name: str) -> None:
    logits, labels = nasty()[name]
    kept = labels != -100
    found = values(logits, labels)
    for each, p in zip(found, probabilities(logits[:, kept]), strict=True):
        y = labels[kept]
        assert each["accuracy"] == float((p.argmax(-1) == y).double().mean()), "argmax takes the first of equals"
        one_hot = F.one_hot(y, p.shape[-1]).double()
        assert each["brier"] == pytest.approx(float((p - one_hot).square().sum(-1).mean()), abs=1e-11)
    for head in range(3):
        expected = F.cross_entropy(logits[head].double(), labels, ignore_index=-100)
        assert found[head]["nll"] == pytest.approx(float(expected), rel=1e-11, abs=1e-12)
        assert found[3]["nll"] <= max(each["nll"] for each in found[:3])


def test_equal_logits_never_favour_the_label():
    # torch.topk may return any of equal logits, torchmetrics with it; here the lower index is first, as with argmax.
    labels = torch.arange(8)
    found = values(torch.zeros(1, 8, 8), labels)[0]
    assert found["accuracy"] == 1 / 8 and found["accuracy_top5"] == 5 / 8
    assert found["nll"] == pytest.approx(math.log(8))


def test_an_impossible_label_costs_everything():
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = -math.inf
    found = values(logits, torch.tensor([0, 2, 1]))
    assert found[0]["nll"] == math.inf and found[0]["perplexity"] == math.inf
    assert found[0]["brier"] == pytest.approx((2 * 0.75 + 4 / 3) / 3)
    assert math.isfinite(found[1]["nll"])
    assert math.isfinite(found[2]["nll"]), "the other head keeps the mean of probabilities above 0"
    assert found[3]["nll"] == math.inf, "a geometric mean is 0 where one factor is"


def test_no_samples_and_broken_samples_give_no_number():
    logits, labels = made(6, 4)
    assert all(math.isnan(value) for value in values(logits, torch.full((6,), -100))[0].values())
    assert all(math.isnan(value) for value in values(logits[:, :0], labels[:0])[0].values())
    for wrong in (math.nan, math.inf):
        broken = logits.clone()
        broken[1, 2, 3] = wrong
        assert predictions(broken, labels).broken == 1
        assert all(math.isnan(value) for value in values(broken, labels)[0].values())
    apart = torch.full((2, 1, 2), -math.inf)
    apart[0, 0, 0] = apart[1, 0, 1] = 0.0
    assert predictions(apart, torch.tensor([0])).broken == 1, "no class is possible to both heads"


def test_mistakes_are_named():
    logits, labels = made(6, 4)
    with pytest.raises(ValueError, match=r"logits \[3, 6, 4\] and labels \[5\] do not fit"):
        list(pieces(logits, labels[:5]))
    labels[3] = 4
    with pytest.raises(ValueError, match="label 4 of sample 3 of the batch is no class: the logits have 4 classes"):
        list(pieces(logits, labels))
