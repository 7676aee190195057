"""Robustness: real measures under real harms, and means worked out by hand."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from nt_pretrain.eval.corrupted_set import Corruptor
from nt_pretrain.eval.corruptions import corrupted
from nt_pretrain.eval.harms import Harm, Kind, harms_of
from nt_pretrain.eval.measure import Measures, values_of
from nt_pretrain.eval.robustness import Robustness, Samples, Values, means, measure_all, with_characters
from nt_pretrain.eval.robustness_figure import draw_robustness, quartiles
from nt_pretrain.eval.robustness_table import tables
from nt_pretrain.eval.weight_dropout import weight_dropout

COUNT, CLASSES, HEADS, SEED = 37, 5, 3, 2
NAMES = ("gaussian_noise", "contrast", "weight_dropout")
SOME = [harm for harm in harms_of(NAMES, data="pictures") if harm.severity in (2, 5)]


class Small(nn.Module):
    """Heads that look at a few sums of pixels, in integers, so that a batch's size cannot show in a logit."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randint(-3, 4, (HEADS, CLASSES, 48), generator=generator).float())

    def forward(self, pixels: Tensor) -> Tensor:
        sums = pixels.double().view(len(pixels), 48, 4).sum(2)
        return torch.einsum("mcf,nf->mnc", self.weight.double(), sums) / 2048


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    pixels = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return pixels, Small()(pixels).mean(0).argmax(-1)


def dealt(size: int, rank: int, world: int, change: Corruptor | None = None) -> list[tuple[Tensor, Tensor]]:
    pixels, labels = pictures()
    if change is not None:
        pixels = torch.stack([change(picture, number) for number, picture in enumerate(pixels)])
    found = []
    for first in range(rank * size, -(-COUNT // (world * size)) * world * size, world * size):
        batch, marks = torch.zeros(size, 3, 8, 8, dtype=torch.uint8), torch.full((size,), -100)
        held = pixels[first : first + size]
        batch[: len(held)], marks[: len(held)] = held, labels[first : first + size]
        found.append((batch, marks))
    return found


def measured(model: Small, size: int, world: int, harms: list[Harm] = SOME, **options: object) -> Robustness:
    """As ranks would: each measures its part, and the sums are added."""

    def measure(parts: Iterable[tuple[Tensor, Tensor]]) -> Measures:
        total = Measures.zeros(HEADS)
        for pixels, labels in parts:
            with torch.no_grad():
                total.add(model(pixels), labels)
        return total

    def samples(harm: Harm | None) -> Samples:
        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for rank in range(world):
                change = None if harm is None else Corruptor(harm.name, harm.severity, SEED)
                yield from dealt(size, rank, world, change)

        return Samples(batches())

    return measure_all(measure, samples, harms, models=[model], seed=SEED, **options)


def test_batches_and_ranks_leave_no_trace() -> None:
    expected = json.dumps(measured(Small(), 64, 1).to_json())
    assert json.dumps(measured(Small(), 7, 2).to_json()) == expected
    one, *others = (
        json.dumps(measured(Small(), size, world, SOME[1:2]).to_json()) for size, world in ((64, 1), (1, 1), (4, 3))
    )
    assert others == [one, one]


def test_each_harm_is_measured_as_it_says() -> None:
    model, calls = Small(), []
    before = model.weight.detach().clone()
    found = measured(model, 16, 1, progress=lambda *call: calls.append(call))
    assert torch.equal(model.weight, before)
    assert [(harm.name, harm.severity) for harm, _ in found.harmed] == [(n, s) for n in NAMES for s in (2, 5)]
    assert calls[0] == (0, 7, "as it is") and calls[2] == (2, 7, "gaussian_noise 5") and calls[-1] == (7, 7, "")
    assert len(calls) == 8 and found.kinds == ["corruption", "weights"]
    pixels, labels = pictures()
    alone = Measures.zeros(HEADS)
    alone.add(model(pixels).detach(), labels)
    assert found.clean == values_of(alone)
    dropped = Measures.zeros(HEADS)
    with weight_dropout(model, 0.3, SEED):
        dropped.add(model(pixels).detach(), labels)
    assert found.of("weights")["weight_dropout"][1][1] == values_of(dropped) != found.clean
    noisy = Measures.zeros(HEADS)
    changed = [corrupted(picture, "contrast", 5, seed=SEED, sample=number) for number, picture in enumerate(pixels)]
    noisy.add(model(torch.stack(changed)).detach(), labels)
    assert found.of("corruption")["contrast"][1][1] == values_of(noisy) != found.clean
    assert len(found.lost_heads) == HEADS


def test_the_weights_are_back_after_an_error() -> None:
    model = Small()
    before = model.weight.detach().clone()

    def samples(harm: Harm | None) -> Samples:
        return Samples(dealt(8, 0, 1))

    def measure(batches: Iterable[tuple[Tensor, Tensor]]) -> Measures:
        if not torch.equal(model.weight, before):
            raise RuntimeError("no device")
        return Measures.zeros(HEADS)

    with pytest.raises(RuntimeError, match="no device"):
        measure_all(measure, samples, harms_of(["weight_dropout"], data="pictures"), models=[model], seed=0)
    assert torch.equal(model.weight, before)


def made(accuracy: float, nll: float, ece: float) -> Values:
    return {name: {"accuracy": accuracy + extra, "nll": nll, "ece": ece, "perplexity": math.exp(nll)}
            for extra, name in enumerate(["head_0", "ensemble"])} | {"set": {"samples": 10}}  # fmt: skip


def by_hand() -> Robustness:
    """Two corruptions at five severities, with values that are easy to add up."""
    fog = [(0.9, 0.1, 0.01), (0.8, 0.2, 0.02), (0.7, 0.3, 0.03), (0.6, 0.4, 0.04), (0.5, 0.5, 0.05)]
    jpeg = [(0.5, 1.0, 0.1), (0.4, 2.0, 0.2), (0.3, 3.0, 0.3), (0.2, 4.0, 0.4), (0.1, 5.0, 0.5)]
    rows = [(name, row) for name, each in (("fog", fog), ("jpeg", jpeg)) for row in enumerate(each, start=1)]
    harmed = [(Harm("corruption", name, severity, (1.0,)), made(*values)) for name, (severity, values) in rows]
    weights = [(Harm("weights", "weight_dropout", 1, (0.01,)), made(0.25, 9.0, 0.9))]
    return Robustness(made(0.95, 0.05, 0.005), harmed + weights)


def test_means_by_hand() -> None:
    found = means(by_hand(), "corruption", "head_0")
    assert found == pytest.approx({
        "cA": 0.5, "cA_change": -0.45, "cA_kept": 0.5 / 0.95, "cNLL": 1.65, "cNLL_change": 1.6,
        "cECE": 0.165, "cECE_change": 0.16,
    })  # fmt: skip
    assert means(by_hand(), "corruption", "ensemble")["cA"] == pytest.approx(1.5), "each member has its own"
    assert means(by_hand(), "corruption", "head_0", name="jpeg")["cNLL"] == pytest.approx(3.0)
    assert means(by_hand(), "corruption", "head_0", severity=2)["cA"] == pytest.approx(0.6)
    assert means(by_hand(), "weights", "head_0")["cECE"] == pytest.approx(0.9), "kinds are never mixed"
    assert means(by_hand(), "typing", "head_0") == {}


def test_quartiles_by_hand() -> None:
    found = quartiles(by_hand(), "corruption", "head_0", "accuracy")
    assert found[0] == (0.95, 0.95, 0.95), "severity 0 is no harm"
    assert found[1] == pytest.approx((0.6, 0.7, 0.8)) and found[5] == pytest.approx((0.2, 0.3, 0.4))


def test_a_value_that_is_no_number_is_no_number_in_the_mean() -> None:
    robustness = by_hand()
    robustness.harmed[3][1]["head_0"]["nll"] = math.nan
    found = means(robustness, "corruption", "head_0")
    assert math.isnan(found["cNLL"]) and found["cA"] == pytest.approx(0.5)


def test_json_has_all_means() -> None:
    robustness = by_hand()
    found = json.loads(json.dumps(robustness.to_json()))
    head = found["means"]["corruption"]["head_0"]
    assert head["cA"] == pytest.approx(0.5)
    assert head["by_name"]["fog"]["cNLL"] == pytest.approx(0.3) and list(head["by_name"]) == ["fog", "jpeg"]
    assert head["by_severity"]["5"]["cECE"] == pytest.approx(0.275)
    assert len(found["harms"]) == 11 and found["harms"][0]["amount"] == [1.0]
    assert found["harms"][6]["values"] == robustness.harmed[6][1]


def test_bits_per_character_by_hand() -> None:
    logits, labels = torch.zeros(2, 6, 8), torch.tensor([0, 1, 2, 3, -100, -100])
    measures = Measures.zeros(2)
    measures.add(logits, labels)
    found = with_characters(values_of(measures), 6)
    # Four targets of 3 bits each over six characters.
    assert all(found[name]["bits_per_character"] == pytest.approx(2.0) for name in found if name != "set")
    assert "bits_per_character" not in with_characters(values_of(measures), 0)["ensemble"]


def test_text_counts_characters_and_other_corpora_stand_beside() -> None:
    logits, labels = torch.zeros(2, 4, 8), torch.tensor([0, 1, 2, 3])

    def measure(batches: Iterable[tuple[Tensor, Tensor]]) -> Measures:
        sums = Measures.zeros(2)
        for tokens, _ in batches:
            sums.add(logits * 0 + tokens.double().mean(), labels)
        return sums

    def text(characters: int) -> Samples:
        return Samples([(torch.ones(1), torch.ones(1))], characters)

    kind: Kind = "typing"
    harms = [harm for harm in harms_of(["drop"], data="text") if harm.severity < 3]
    found = measure_all(
        measure, lambda harm: text(12 if harm is None else 6), harms, models=[nn.Linear(2, 2)], seed=0,
        domains={"other": lambda: text(3)},
    )  # fmt: skip
    assert found.clean["ensemble"]["bits_per_character"] == pytest.approx(1.0)
    ensemble = means(found, kind, "ensemble")
    assert ensemble["cBPC"] == pytest.approx(2.0) and ensemble["cBPC_change"] == pytest.approx(1.0)
    assert ensemble["cNLL_change"] == pytest.approx(0.0)
    assert found.domains["other"]["ensemble"]["bits_per_character"] == pytest.approx(4.0)
    assert found.to_json()["domains"] == found.domains
    shown = text_of(found)
    assert "other corpora" in shown and "cBPC ↓" in shown and "4.0000" in shown


def text_of(robustness: Robustness) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for table in tables(robustness):
        console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def found() -> Robustness:
    return measured(Small(), 64, 1)


def test_tables_show_means_and_lost_heads(found: Robustness) -> None:
    shown = text_of(found)
    best = means(found, "corruption", "ensemble")
    start = ["ensemble", f"{found.clean['ensemble']['accuracy']:.4f}"]
    row = next(line for line in shown.splitlines() if line.split()[:2] == start)
    assert row.split()[2] == f"{best['cA']:.4f}" and f"{best['cECE']:.4f}" in row
    assert all(name in shown for name in ("contrast", "weight_dropout", "mean head", "head 2", "one head lost"))


def test_the_figure_shows_the_harms(found: Robustness, tmp_path: Path) -> None:
    drawn = []
    for name, robustness in (("all", found), ("clean", Robustness(found.clean, found.harmed[:4]))):
        path = draw_robustness(robustness, tmp_path / "figures" / f"{name}.png")
        with Image.open(path) as picture:
            drawn.append(np.asarray(picture.convert("RGB")))
            assert len(np.unique(drawn[-1].reshape(-1, 3), axis=0)) > 30
    assert drawn[0].shape[0] > 1.5 * drawn[1].shape[0], "a row of panels for each kind"
    with pytest.raises(ValueError, match="no harm was measured"):
        draw_robustness(Robustness(found.clean), tmp_path / "none.png")
