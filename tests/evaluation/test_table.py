"""The record of an evaluation as strict JSON, and the table that people read."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch

from nt_pretrain.config.schema import Config, EvalSection, ModelSection
from nt_pretrain.eval.measure import Measures, values_of
from nt_pretrain.eval.temperature import fit_temperatures
from nt_pretrain.evaluation.batches import ValidationSet
from nt_pretrain.evaluation.chosen import Chosen, Speaker
from nt_pretrain.evaluation.evaluate import Calibration, Evaluation, Foreign
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.record import record_of, to_text
from nt_pretrain.evaluation.table import render
from nt_pretrain.evaluation.target import Target
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.observe.rundir import RunDir


def made(heads: int = 3, *, broken: bool = False, pictures: bool = True) -> Evaluation:
    """Of random logits, with every part that there can be."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(heads, 60, 7, generator=draw) * 3
    labels = torch.randint(0, 7, (60,), generator=draw)
    temperatures = fit_temperatures(lambda: [(logits[:, :20], labels[:20])], heads)
    whole, raw, calibrated = (Measures.zeros(heads, classwise=7 if pictures else 0) for _ in range(3))
    calibrated.temperatures = temperatures.values
    for measures in (raw, calibrated):
        measures.add(logits[:, 20:], labels[20:])
    if broken:
        logits[0, 3, 2] = math.nan
    whole.add(logits, labels)
    members = heads + 2
    foreign = Foreign(["data/far/validation"], whole.classification.confidences[:members, :, 0].clone(), 0)
    family = {"family": "resnet18", "classes": 7} if pictures else {}
    config = Config(model=ModelSection(heads=heads, **family), eval=EvalSection(sequences=0, ensemble="logit"))
    loaded = Loaded(MultiHead(None, {}), [], 1234, "abc", "step_00001234", False, [])
    units = "pictures" if pictures else "targets"
    data = ValidationSet(units, 7, 1, ["data/near/validation"], ["f"], 1, lambda: iter(()))
    pairs = torch.full((heads, heads), 0.25, dtype=torch.float64)
    overlap = (pairs, pairs / 2) if heads > 1 else None
    calibration = Calibration(temperatures, raw, calibrated)
    here = RunDir("run")
    chosen = Chosen(here, [Speaker("", Target(here, None), config, tuple(range(heads)))])
    return Evaluation(chosen, [loaded], data, whole, calibration, overlap, foreign, None, ["one thing is left"])


def test_everything_stands_in_the_record() -> None:
    found = made()
    record = json.loads(to_text(record_of(found, {})))
    expected = values_of(found.whole)
    assert record["set"] == expected.pop("set")
    assert record["members"] == expected
    assert record["calibration"]["raw"]["ensemble"] == values_of(found.calibration.raw)["ensemble"]
    assert record["calibration"]["calibrated"]["head_1"] == values_of(found.calibration.calibrated)["head_1"]
    assert (
        record["calibration"]["calibrated"]["head_1"]["accuracy"] == record["calibration"]["raw"]["head_1"]["accuracy"]
    )
    assert (record["calibration"]["fitted_on"], record["calibration"]["reported_on"]) == (20, 40)
    assert set(record["calibration"]["temperatures"]) == {"head_0", "head_1", "head_2", "ensemble", "ensemble_logit"}
    assert record["foreign"]["members"]["ensemble"]["auroc"] == 0.5, "the same samples are not told apart"
    assert [row["heads"] for row in record["heads_used"]] == [1, 2, 3]
    assert record["disagreement"][0][0] == 0.0 and record["disagreement"][0][1] == record["disagreement"][1][0]
    assert sum(row["samples"] for row in record["reliability"]["head_0"]) == 60


def rows(text: str, name: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(f"  {name}")]


def test_the_table_shows_members_raw_and_calibrated() -> None:
    record = record_of(made(), {})
    text = render(record)
    assert text.splitlines()[0] == "run, step 1,234: 60 pictures of data/near/validation"
    for title in ("raw, all 60 pictures", "raw, the 40 that fit no temperature", "calibrated, the same 40"):
        assert title in text
    assert "temperatures fitted on the other 20 pictures" in text
    raw, rest, calibrated, told_apart = rows(text, "head 1")
    assert float(raw[2]) == pytest.approx(record["members"]["head_1"]["accuracy"], abs=5e-5)
    assert float(rest[4]) == pytest.approx(record["calibration"]["raw"]["head_1"]["nll"], abs=5e-5)
    assert float(calibrated[-1]) == pytest.approx(record["calibration"]["temperatures"]["head_1"], abs=5e-4)
    assert len(calibrated) == len(rest) + 1, "T stands where it was used"
    assert float(told_apart[2]) == 0.5
    assert "ECE class ↓" in text and "ppl ↓" not in text
    assert "0.2500" in text and "0.1250" in text
    assert "note: one thing is left" in text
    assert max(map(len, text.splitlines())) <= 130


def test_text_has_perplexity_and_one_head_no_pairs() -> None:
    text = render(record_of(made(1, pictures=False), {}))
    assert "ppl ↓" in text and "ECE class ↓" not in text
    assert "diversity" not in text and "Jaccard" not in text


def test_broken_outputs_are_told_and_the_json_stays_strict() -> None:
    record = record_of(made(broken=True), {})
    text = to_text(record)
    read = json.loads(text, parse_constant=_refuse)
    assert read["set"]["broken"] == 1
    assert read["members"]["ensemble"]["nll"] is None
    assert read["foreign"]["members"]["head_0"]["auroc"] is None
    shown = render(record)
    assert "1 of them have outputs that are no numbers" in shown and "nan" in shown


def _refuse(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


def test_on_a_terminal_the_headlined_ensemble_is_bold() -> None:
    record = record_of(made(), {})
    shown = render(record, bold=True)
    (row,) = [line for line in shown.splitlines() if "\x1b[1m" in line and "ensemble" in line][:1]
    assert "ensemble (logits)" in row, "eval.ensemble: logit"
    plain = "".join(part for part in re.split(r"\x1b\[[0-9;]*m", shown))
    assert [line.rstrip() for line in plain.splitlines()] == render(record).splitlines()
