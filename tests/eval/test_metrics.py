"""Losses of heads and ensemble against direct computation, in whatever pieces tokens arrive."""

import math

import pytest
import torch
import torch.nn.functional as F

from nt_pretrain.eval.metrics import TokenSums, losses


def sample(heads: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = [torch.randn(4, 10, 31, generator=generator) * 2 for _ in range(heads)]
    targets = torch.randint(0, 31, (4, 10), generator=generator)
    targets[1, 4:] = -100
    return logits, targets


def measured(logits, targets, pieces) -> dict[str, float]:
    sums = TokenSums(torch.zeros(len(logits), dtype=torch.float64))
    for part in pieces:
        sums.add([each[part] for each in logits], targets[part])
    return losses(sums.table(), len(logits))


def test_values():
    logits, targets = sample()
    found = measured(logits, targets, [slice(0, 4)])
    flat = targets.flatten()
    probability = torch.stack([each.flatten(0, 1).double().softmax(-1) for each in logits]).mean(0)
    expected = F.nll_loss(probability.log(), flat, ignore_index=-100)
    assert found["validation/loss_ensemble"] == pytest.approx(float(expected), rel=1e-6)
    mean_logits = torch.stack(logits).mean(0).flatten(0, 1)
    expected = F.cross_entropy(mean_logits, flat, ignore_index=-100)
    assert found["validation/loss_ensemble_logit"] == pytest.approx(float(expected), rel=1e-6)
    for head, each in enumerate(logits):
        expected = F.cross_entropy(each.flatten(0, 1), flat, ignore_index=-100)
        assert found[f"validation/loss_head_{head}"] == pytest.approx(float(expected), rel=1e-6)
    choices = [each.argmax(-1)[targets != -100] for each in logits]
    pairs = [(choices[a] != choices[b]).double().mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found["validation/disagreement"] == pytest.approx(float(sum(pairs)) / 3)
    assert found["validation/targets"] == 34


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = sample()
    before = [each.clone() for each in logits]
    whole = measured(logits, targets, [slice(0, 4)])
    monkeypatch.setattr("nt_pretrain.eval.metrics.CHUNK", 7)
    assert measured(logits, targets, [slice(0, 4)]) == whole
    assert all(map(torch.equal, logits, before)), "the logits are the caller's"


def test_pieces_do_not_matter_and_padding_never_counts():
    logits, targets = sample()
    whole = measured(logits, targets, [slice(0, 4)])
    for pieces in ([slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]):
        assert measured(logits, targets, pieces) == pytest.approx(whole, rel=1e-12)
    padded = [torch.cat([each, torch.full((2, 10, 31), 7.0)]) for each in logits]
    more = torch.cat([targets, torch.full((2, 10), -100)])
    assert measured(padded, more, [slice(0, 6)]) == pytest.approx(whole, rel=1e-12)


def test_ensemble_is_never_worse_than_the_mean_of_its_heads():
    found = measured(*sample(), [slice(0, 4)])
    assert found["validation/loss_ensemble"] <= found["validation/loss_mean_head"]
    assert found["validation/loss_ensemble_logit"] <= found["validation/loss_mean_head"]


def test_identical_heads_agree_and_lose_what_one_loses():
    logits, targets = sample(1)
    found = measured(logits * 3, targets, [slice(0, 4)])
    assert found["validation/disagreement"] == 0
    for rule in ("loss_ensemble", "loss_ensemble_logit", "loss_mean_head"):
        assert found[f"validation/{rule}"] == pytest.approx(found["validation/loss_head_0"], rel=1e-6)


def test_one_head_reports_no_disagreement():
    found = measured(*sample(1), [slice(0, 4)])
    assert "validation/disagreement" not in found and math.isfinite(found["validation/loss_ensemble"])
