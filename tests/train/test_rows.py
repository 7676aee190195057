"""A network of rows as a run: the same bits on any number of ranks, killed and resumed, evaluated under noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import command
from tests.data.rowsets import prepared
from tests.train import launches

pytestmark = pytest.mark.timeout(300)
STEPS = 24


def write_config(folder: Path) -> Path:
    """Two sparse heads of one hidden layer on a trunk of one, and the average of their weights."""
    data = prepared(folder)
    path = folder / "rows.yaml"
    path.write_text(
        "model: {family: mlp, features: 6, classes: 3, widths: [16, 16], heads: 2, blocks_in_head: 1}\n"
        "sparsity: {density: 0.5, update_every: 5}\n"
        f"train: {{steps: {STEPS}, global_batch: 16, micro_batch: 4, ema_decay: 0.9}}\n"
        "optim: {algorithm: sgd, lr: 0.1, weight_decay: 5e-4, clip: 0, min_lr_ratio: 0}\n"
        "parallel: {deterministic_reduce: true}\n"
        f"data: {{path: {data}, lanes: 8, workers: 0}}\n"
        "checkpoint: {save_every_steps: 6, keep: 9}\n"
        "eval: {every_steps: 0, sequences: 0, micro_batch: 20, figures: false}\n"
        "observe: {log_every_steps: 1}\n"
        "run: {device: cpu}\n"
    )
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    folder = config.parent / "runs" / "whole"
    launches.finish(launches.start(2, folder, config=str(config)), folder)
    return folder


def test_two_ranks_killed_and_resumed_by_one_equal_two_undisturbed(config: Path, whole: Path) -> None:
    folder = whole.parent / "killed"
    process = launches.start(2, folder, config=str(config))
    launches.wait_for_step(process, folder, 8)
    launches.kill_tree(process)  # SIGKILL, of all processes
    assert launches.last_step(folder) < STEPS, "it was through before it was killed"
    launches.finish(launches.start(1, folder, config=str(config)), folder)
    launches.assert_same_run(whole, folder, STEPS)


def test_the_run_learns_and_measures_what_runs_of_pictures_do(whole: Path) -> None:
    losses = [line["train/loss"] for line in launches.training_lines(whole)]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    (row,) = [line for line in read_lines(RunDir(whole).metrics) if "validation/loss_ensemble" in line]
    for name in ("loss", "accuracy", "brier", "ece", "ece_classwise", "aurc"):
        assert {f"validation/{name}_{member}" for member in ("head_0", "head_1", "ensemble")} <= row.keys(), name
    assert row["validation/accuracy_ensemble"] > 0.6 and row["validation_ema/accuracy_ensemble"] > 0.4
    assert {line["rows/total"] for line in launches.training_lines(whole)} == {16.0 * n for n in range(1, STEPS + 1)}
    assert "row/s/rank" in (whole / "console.log").read_text()
    summary = command("launch/report.py", str(whole)).stdout
    assert f"validation at step {STEPS}: accuracy, loss" in summary and "trained on 384 rows" in summary
    assert f"  ensemble  {row['validation/accuracy_ensemble']:7.2%}" in summary


def test_it_is_evaluated_under_noise(whole: Path, tmp_path: Path) -> None:
    asked = ["--robustness", "gaussian_noise", "--calibrate", "0.25", "--out", str(tmp_path)]
    shown = command("launch/evaluate.py", str(whole), *asked, "run.threads_per_rank=1").stdout
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["set"]["samples"] == 40 and found["data"]["units"] == "rows"
    (own,) = [line for line in read_lines(RunDir(whole).metrics) if "validation/loss_ensemble" in line]
    assert found["members"]["ensemble"]["nll"] == own["validation/loss_ensemble"]
    harms = found["robustness"]["harms"]
    assert [(harm["name"], harm["amount"]) for harm in harms] == [
        ("gaussian_noise", [deviation]) for deviation in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    clean = found["members"]["ensemble"]["nll"]
    assert all(harm["values"]["ensemble"]["nll"] != clean for harm in harms)
    assert "corrupted inputs: means" in shown and "ECE class ↓" in shown and "perpl" not in shown
