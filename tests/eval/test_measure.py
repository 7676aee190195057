"""All measures together: the same bits for any batch size, split and order; values that belong together."""

import itertools
import json
import math

import pytest
import torch

from nt_pretrain.eval.measure import Measures, quality_by_heads, values_of
from tests.eval.samples import made, nasty
from tests.gloo import run_ranks


def measured(logits: torch.Tensor, labels: torch.Tensor, size: int, **options) -> Measures:
    measures = Measures.zeros(len(logits), **options)
    for z, y in zip(logits.split(size, dim=1), labels.split(size), strict=True):
        measures.add(z, y)
    return measures


def canonical(measures: Measures) -> str:
    return json.dumps([values_of(measures), quality_by_heads(measures)])


@pytest.mark.parametrize("classes", [10, 37])
def test_batch_sizes_and_ranks_leave_no_trace(classes: int) -> None:
    logits, labels = made(1003, classes)
    labels[::17] = -100
    whole = measured(logits, labels, 1003, classwise=classes)
    expected, table = canonical(whole), whole.table()
    for size, ranks in itertools.product((1, 7, 64), (1, 2, 3)):
        if (size == 1 and (ranks != 3 or classes != 10)) or (size == 7 and (ranks == 2 or classes != 37)):
            continue  # many small calls cost seconds: each size and number of ranks has its turn
        parts = [measured(logits[:, r::ranks], labels[r::ranks], size, classwise=classes) for r in range(ranks)]
        total = Measures.zeros(3, classwise=classes)
        total.take(sum(part.table() for part in parts))
        assert torch.equal(total.table(), table), (size, ranks)
    assert canonical(total) == expected


def _reduced(rank: int, world: int, size: int) -> str:
    logits, labels = made(1003, 10)
    mine = slice(rank * 1003 // world, (rank + 1) * 1003 // world)
    measures = measured(logits[:, mine], labels[mine], size)
    table = measures.table()
    torch.distributed.all_reduce(table)
    measures.take(table)
    return canonical(measures)


@pytest.mark.timeout(120)
def test_real_ranks_agree_to_the_last_bit():
    logits, labels = made(1003, 10)
    expected = canonical(measured(logits, labels, 1003))
    for world, size in ((2, 64), (3, 7)):
        assert run_ranks(_reduced, world, size) == [expected] * world


def test_chunks_of_a_large_vocabulary_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made(48, 1031)
    shaped = logits.view(3, 4, 12, 1031)
    whole = Measures.zeros(3)
    whole.add(shaped, labels.view(4, 12))
    before = logits.clone()
    monkeypatch.setattr("nt_pretrain.eval.members.CHUNK", 5 * 3 * 1031)
    assert torch.equal(measured(logits, labels, 48).table(), whole.table())
    assert torch.equal(logits, before), "the logits are the caller's"
    monkeypatch.setattr("nt_pretrain.eval.members.CHUNK", 1)
    assert torch.equal(measured(logits, labels, 10).table(), whole.table())


def test_half_precision_is_the_same_as_its_values():
    logits, labels = made(40, 6)
    half = logits.bfloat16()
    assert torch.equal(measured(half, labels, 40).table(), measured(half.double(), labels, 7).table())


@pytest.mark.parametrize("name", list(nasty()))
def test_nasty_inputs_merge_too(name: str) -> None:
    logits, labels = nasty()[name]
    whole = measured(logits, labels, 60)
    first, second = measured(logits[:, :11], labels[:11], 4), measured(logits[:, 11:], labels[11:], 60)
    first.merge(second)
    assert torch.equal(first.table(), whole.table()) and canonical(first) == canonical(whole)


def test_an_ensemble_gains_under_both_rules():
    logits, labels = made(300, 9)
    found = values_of(measured(logits, labels, 50))
    assert found["set"]["ensemble_gain"] > 0 and found["set"]["ensemble_gain_logit"] > 0
    heads = [found[f"head_{head}"]["nll"] for head in range(3)]
    assert found["mean_head"]["nll"] == pytest.approx(sum(heads) / 3)
    assert found["mean_head"]["perplexity"] == pytest.approx(math.exp(sum(heads) / 3))
    assert found["set"]["samples"] == 300 and found["set"]["broken"] == 0


def test_quality_rises_with_the_heads_used():
    logits, labels = made(400, 9, heads=4)
    measures = measured(logits, labels, 400)
    rows, found = quality_by_heads(measures), values_of(measures)
    assert [row["heads"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["nll"] == pytest.approx(found["mean_head"]["nll"])
    assert rows[-1]["nll"] == pytest.approx(found["ensemble"]["nll"], abs=1e-12)
    assert rows[-1]["accuracy"] == found["ensemble"]["accuracy"]
    losses = [row["nll"] for row in rows]
    assert losses == sorted(losses, reverse=True), "by Jensen"
    assert rows[1]["nll_low"] < rows[1]["nll"] < rows[1]["nll_high"]


def test_many_heads_are_tried_in_rings():
    logits, labels = made(40, 4, heads=8)
    rows = quality_by_heads(measured(logits, labels, 40))
    assert len(rows) == 8 and rows[0]["nll"] > rows[-1]["nll"]


def test_one_head_is_its_own_ensemble():
    logits, labels = made(80, 5, heads=1)
    found = values_of(measured(logits, labels, 80))
    for name, value in found["head_0"].items():
        assert found["ensemble"][name] == pytest.approx(value, abs=1e-12)
    assert "disagreement" not in found["set"]


def test_no_samples_and_broken_ones_are_told():
    found = values_of(Measures.zeros(3, classwise=4))
    assert found["set"]["samples"] == 0 and all(math.isnan(value) for value in found["ensemble"].values())
    logits, labels = made(10, 4)
    logits[1, 3, 2] = math.nan
    found = values_of(measured(logits, labels, 3, classwise=4))
    assert found["set"]["broken"] == 1 and all(math.isnan(value) for value in found["head_0"].values())


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="another number of heads or classes"):
        Measures.zeros(2).take(torch.cat([Measures.zeros(2).table(), torch.zeros(1, dtype=torch.int64)]))
    logits, labels = made(10, 4)
    with pytest.raises(ValueError, match="logits of 3 heads"):
        Measures.zeros(2).add(logits, labels)


@pytest.mark.parametrize("heads", [2, 3, 5])
def test_ensembles_that_tie_choose_the_lowest_class_in_every_order_of_heads(heads: int) -> None:
    """Heads that are cyclic permutations of one another: every class of the cycle has the same mean probability."""
    generator = torch.Generator().manual_seed(heads)
    cycle = torch.randn(500, heads, generator=generator)
    rest = torch.full((500, 4), -5.0)
    logits = torch.stack([torch.cat([cycle.roll(k, 1), rest], 1) for k in range(heads)])
    found = []
    for order in (list(range(heads)), list(reversed(range(heads)))):
        sums = Measures.zeros(heads)
        sums.add(logits[order], torch.zeros(500, dtype=torch.int64))
        values = values_of(sums)
        assert values["ensemble"]["accuracy"] == 1.0 and values["ensemble_logit"]["accuracy"] == 1.0
        assert quality_by_heads(sums)[-1]["accuracy"] == values["ensemble"]["accuracy"]
        found.append([row["accuracy"] for row in quality_by_heads(sums)])
    assert found[0] == pytest.approx(found[1], abs=1e-12) and found[0][0] < 1.0
