"""The ensemble without one head, against the ensemble computed anew."""

import pytest
import torch

from nt_pretrain.eval.lost_head import lost_head_values
from nt_pretrain.eval.measure import Measures, values_of
from tests.eval.samples import made


@pytest.mark.parametrize("heads", [2, 3, 6, 7, 9])
def test_each_head_lost_is_the_ensemble_of_the_others(heads: int) -> None:
    logits, labels = made(60, 7, heads=heads)
    measures = Measures.zeros(heads)
    measures.add(logits, labels)
    rows, whole = lost_head_values(measures.heads_used, heads), values_of(measures)["ensemble"]
    assert [row["lost"] for row in rows] == list(range(heads))
    for lost, row in enumerate(rows):
        kept = torch.cat([logits[:lost], logits[lost + 1 :]])
        p = kept.double().softmax(-1).mean(0)
        nll = float(-p[torch.arange(60), labels].log().mean())
        assert row["nll"] == pytest.approx(nll, abs=1e-11)
        assert row["accuracy"] == float((p.argmax(-1) == labels).double().mean())
        assert row["nll_change"] == pytest.approx(nll - whole["nll"], abs=1e-11)
        assert row["accuracy_change"] == pytest.approx(row["accuracy"] - whole["accuracy"])


def test_one_head_cannot_be_lost_and_broken_samples_are_told() -> None:
    assert lost_head_values(Measures.zeros(1).heads_used, 1) == []
    rows = lost_head_values(Measures.zeros(3).heads_used, 3)
    assert len(rows) == 3 and all(row["nll"] != row["nll"] and row["accuracy"] != row["accuracy"] for row in rows)
