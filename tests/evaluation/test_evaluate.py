"""What is measured when a part cannot be: outputs that are no numbers, no sample to fit on, one head, a dense run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nt_pretrain.eval.measure import values_of
from nt_pretrain.evaluation.batches import ValidationSet
from nt_pretrain.evaluation.chosen import Chosen, Speaker
from nt_pretrain.evaluation.evaluate import evaluate
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.record import record_of, to_text
from nt_pretrain.evaluation.speakers import voices_of
from nt_pretrain.evaluation.target import Target
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.shard import local
from nt_pretrain.train.state import fresh_state
from tests.eval.test_gather import dealt
from tests.gloo import run_ranks
from tests.train.worlds import tiny


def _record(rank: int, world: int, share: float, broken: bool, sections: dict[str, Any]) -> dict[str, Any]:
    config = tiny(**sections)
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"micro_batch": 2})})
    ranks = connect(config)
    state = fresh_state(config, ranks)
    if broken:
        with torch.no_grad():
            local(state.parameters["heads.0.norm.weight"]).fill_(float("nan"))
    loaded = Loaded(state.model, state.layers, 0, state.digest(ranks), "step_00000000", False, [])
    batches = list(dealt(rank, world, 2))
    data = ValidationSet("targets", 160, 24, ["here"], [""], len(batches), lambda: iter(batches))
    told: list[tuple[str, int, int]] = []
    here = RunDir("run")
    chosen = Chosen(here, [Speaker("", Target(here, None), config, tuple(range(config.model.heads)))])
    found = evaluate(
        chosen, [loaded], voices_of(chosen, [loaded]), data, ranks, share=share, foreign=data,
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    assert {total for _, _, total in told} == {len(batches)}
    assert [done for what, done, _ in told if what == "measuring"] == list(range(1, len(batches) + 1))
    if found.calibration is not None:
        # What fitted and what is reported are all samples, each once.
        raw = values_of(found.calibration.raw)["set"]["samples"]
        assert found.calibration.temperatures.samples + raw == int(found.whole.classification.counts[0])
        assert values_of(found.calibration.calibrated)["ensemble"]["accuracy"] >= 0.0
    return json.loads(to_text(record_of(found, {})))


@pytest.mark.timeout(100)
def test_outputs_that_are_no_numbers_leave_words_instead_of_values() -> None:
    one, two = run_ranks(_record, 2, 0.3, True, {})
    assert one == two
    assert one["set"]["broken"] == one["set"]["samples"] == 8 * 24 - 10
    assert one["calibration"] is None and "temperatures cannot be fitted" in one["notes"][0]
    assert all(value is None for values in one["members"].values() for value in values.values())
    assert all(values["auroc"] is None for values in one["foreign"]["members"].values())


@pytest.mark.timeout(100)
def test_no_sample_to_fit_on_is_told() -> None:
    (found,) = run_ranks(_record, 1, 1e-9, False, {})
    assert found["calibration"] is None and "of 0 samples with a label" in found["notes"][0]
    assert found["members"]["ensemble"]["nll"] > 0.0


@pytest.mark.timeout(100)
def test_one_dense_head_has_neither_pairs_nor_masks() -> None:
    (found,) = run_ranks(_record, 1, 0.3, False, {"model": {"heads": 1}, "sparsity": {"density": 1.0}})
    assert found["mask_overlap"] is None and "disagreement" not in found["set"]
    assert found["members"]["head_0"]["nll"] == pytest.approx(found["members"]["ensemble"]["nll"], abs=1e-9)
    assert found["calibration"]["reported_on"] < found["set"]["samples"]
    assert found["foreign"]["members"]["ensemble"]["auroc"] == 0.5, "the same samples cannot be told apart"


@pytest.mark.timeout(100)
def test_blocks_whose_tables_every_rank_holds_overlap_alike() -> None:
    sparsity = {"unit": 16, "scope": "heads", "update_every": 3}
    (alone,) = run_ranks(_record, 1, 0.0, False, {"sparsity": sparsity})
    for found in run_ranks(_record, 2, 0.0, False, {"sparsity": sparsity}):
        assert found["mask_overlap"] == alone["mask_overlap"]
    assert 0.0 < alone["mask_overlap"]["jaccard"][0][1] < 1.0
