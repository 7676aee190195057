"""Diversity of heads against direct computation, scikit-learn and numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import matthews_corrcoef

from nt_pretrain.eval.diversity import DiversitySums, disagreement_matrix, diversity_values
from nt_pretrain.eval.members import pieces
from tests.eval.samples import made, nasty

PAIRS = ((0, 1), (0, 2), (1, 2))


def sums_of(logits: torch.Tensor, labels: torch.Tensor) -> DiversitySums:
    sums = DiversitySums.zeros(len(logits))
    for piece in pieces(logits, labels):
        sums.add(piece)
    return sums


def entropy(p: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(p).sum(-1)


def test_values():
    logits, labels = made(400, 9)
    sums = sums_of(logits, labels)
    found = diversity_values(sums)
    z = logits.double()
    p, choice = z.softmax(-1), logits.argmax(-1)
    differ = [float((choice[a] != choice[b]).double().mean()) for a, b in PAIRS]
    assert found["disagreement"] == pytest.approx(np.mean(differ))
    kl = [
        F.kl_div(z[b].log_softmax(-1), z[a].log_softmax(-1), reduction="batchmean", log_target=True)
        for a, b in itertools.permutations(range(3), 2)
    ]
    assert found["kl"] == pytest.approx(float(sum(kl)) / 6, abs=1e-11)
    js = [(entropy((p[a] + p[b]) / 2) - (entropy(p[a]) + entropy(p[b])) / 2).mean() for a, b in PAIRS]
    assert found["jensen_shannon"] == pytest.approx(float(sum(js)) / 3, abs=1e-11)
    information = entropy(p.mean(0)) - entropy(p).mean(0)
    assert found["mutual_information"] == pytest.approx(float(information.mean()), abs=1e-11)
    cosine = [F.cosine_similarity(z[a], z[b], dim=-1).mean() for a, b in PAIRS]
    assert found["logit_cosine"] == pytest.approx(float(sum(cosine)) / 3, abs=1e-11)
    wrong = (choice != labels).numpy()
    correlation = [matthews_corrcoef(wrong[a], wrong[b]) for a, b in PAIRS]
    assert found["error_correlation"] == pytest.approx(np.mean(correlation))
    assert found["error_correlation"] == pytest.approx(np.mean([np.corrcoef(wrong)[pair] for pair in PAIRS]))
    assert disagreement_matrix(sums)[0, 2] == pytest.approx(differ[1]) and disagreement_matrix(sums)[1, 1] == 0


def test_the_papers_disagreement_counts_its_zero_diagonal():
    logits, labels = made(200, 5)
    found = diversity_values(sums_of(logits, labels))
    choice = logits.argmax(-1)
    whole = [[float((a != b).double().mean()) for a in choice] for b in choice]
    assert found["disagreement_with_diagonal"] == pytest.approx(np.mean(whole))
    assert found["disagreement_with_diagonal"] == pytest.approx(found["disagreement"] * 2 / 3)


def test_cosine_of_logits_depends_on_a_shift_that_no_probability_sees():
    logits, labels = made(100, 5)
    plain, shifted = (diversity_values(sums_of(each, labels)) for each in (logits.double(), logits.double() + 100.0))
    assert shifted["logit_cosine"] > 0.99 > plain["logit_cosine"]
    assert shifted["logit_cosine_centred"] == pytest.approx(plain["logit_cosine_centred"], abs=1e-9)
    assert shifted["kl"] == pytest.approx(plain["kl"], abs=1e-9)


def test_the_same_head_thrice_has_no_diversity():
    logits, labels = made(50, 6, heads=1)
    found = diversity_values(sums_of(logits.repeat(3, 1, 1), labels))
    for name in ("disagreement", "kl", "jensen_shannon", "mutual_information"):
        assert found[name] == pytest.approx(0.0, abs=1e-12), name
    assert found["error_correlation"] == found["logit_cosine"] == pytest.approx(1.0)
    assert diversity_values(sums_of(logits, labels)) == {}, "one head"


def test_sure_heads_that_contradict_each_other():
    logits = torch.full((2, 4, 3), -math.inf)
    logits[0, :, 0] = logits[1, :, 1] = 0.0
    found = diversity_values(sums_of(logits, torch.full((4,), 2)))
    assert math.isnan(found["disagreement"]), "no class is possible to both: the samples are broken"
    logits = torch.tensor([[[0.0, -2000.0]], [[-2000.0, 0.0]]])
    found = diversity_values(sums_of(logits, torch.tensor([0])))
    assert found["disagreement"] == 1.0 and found["kl"] == 2000.0
    assert found["jensen_shannon"] == found["mutual_information"] == pytest.approx(math.log(2), abs=1e-12)
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, -math.inf]]])
    found = diversity_values(sums_of(logits, torch.tensor([0])))
    assert found["kl"] == math.inf and math.isfinite(found["jensen_shannon"]) and math.isnan(found["logit_cosine"])


@pytest.mark.parametrize("name", list(nasty()))
def test_bounds_hold_for_nasty_inputs(name: str) -> None:
    logits, labels = nasty()[name]
    found = diversity_values(sums_of(logits, labels))
    assert 0 <= found["disagreement"] <= 1 and found["kl"] >= 0
    assert 0 <= found["jensen_shannon"] <= math.log(2) + 1e-9
    assert 0 <= found["mutual_information"] <= math.log(3) + 1e-9
    if name in ("probability 0 and 1", "one class"):
        assert math.isnan(found["error_correlation"]), "nobody errs: no correlation"
    else:
        assert -1 <= found["error_correlation"] <= 1
