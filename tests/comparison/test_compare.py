"""A whole comparison: real runs, killed and gone on with, and what it writes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch.compare import parse
from nt_pretrain.comparison.claims import unknown_rows
from nt_pretrain.comparison.grid import jobs_of, rows_of
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.train.costs import costs_of

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/compare_tabular.yaml"


def test_every_row_has_a_dense_model_of_as_many_operations() -> None:
    rows = {row.name: row for row in rows_of(CONFIG, [], ["dense", "deep ensemble", "EDST", "treenet"])}
    assert rows["dense"].reference == 1860 and rows["EDST"].reference == 1860, "masks save no operation"
    assert rows["deep ensemble"].reference == 3 * 1860
    jobs = jobs_of(CONFIG, [], list(rows.values()), 2)
    assert jobs["dense", 0] == jobs["dense:dense", 0] == jobs["dense:EDST", 0]
    assert len({job.name for job in jobs.values()}) == 2 * (4 + 2)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", job.name) for job in jobs.values()), "names of runs"


def test_at_equal_operations_every_row_costs_what_the_dense_model_costs() -> None:
    rows = rows_of(CONFIG, ["compare.budget=flops"], ["dense", "deep ensemble", "treenet"])
    for row in rows:
        assert row.costs.ensemble.executed == pytest.approx(row.costs.dense.executed, rel=2e-3)
        assert row.reference == pytest.approx(1860, rel=2e-3)


def test_rows_of_other_models_are_held_against_the_same_dense_one() -> None:
    wide = "compare.rows={dense: [method.name=dense], wide: [method.name=dense, 'model.widths=[128, 128]']}"
    dense, other = rows_of(CONFIG, [wide], [])
    assert other.costs.dense == dense.costs.dense
    assert other.reference == pytest.approx(1860 * other.costs.ensemble.executed / dense.costs.dense.executed, abs=1)
    assert other.reference > 2 * dense.reference == 2 * 1860


def test_costs_count_what_masks_leave_and_what_is_executed() -> None:
    costs = costs_of(load_config(CONFIG, ["method.name=dst_ensemble", "method.members=2"]))
    assert list(costs.members) == ["member_0", "member_1"]
    assert costs.ensemble.executed == costs.ensemble.training.total == 2 * costs.dense.executed
    assert 0.35 < costs.ensemble.training.active / costs.dense.executed < 0.5, (
        "twice a density of 0.2, biases are dense"
    )
    assert costs.ensemble.parameters.active == 2 * costs.members["member_0"].parameters.active


def test_costs_of_a_row_are_those_of_the_run_it_starts() -> None:
    over = ["train.steps_over_density=true"]
    (row,) = rows_of(CONFIG, over, ["EDST"])
    job = jobs_of(CONFIG, over, [row], 1)["EDST", 0]
    assert row.costs.ensemble == costs_of(load_config(CONFIG, list(job.options))).ensemble
    assert row.reference == row.steps == 1860


@pytest.mark.parametrize("option", ["--seeds=0", "--seeds=-1", "--at-once=0"])
def test_no_seeds_and_no_runs_at_once_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([CONFIG, option])
    assert "give a whole number, 1 or more" in capsys.readouterr().err


def test_names_that_are_no_rows_and_rows_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigErrors, match=r"--methods nonsense: rows and methods are dense, .*edst"):
        rows_of(CONFIG, [], ["dense", "nonsense"])
    with pytest.raises(ConfigErrors, match=r"row rigl: sparsity.density: 1 leaves"):
        rows_of(CONFIG, ["sparsity.density=1"], ["rigl"])


def test_all_claims_speak_of_rows_that_are_there() -> None:
    for path in ROOT.glob("configs/*.yaml"):
        compare = yaml.safe_load(path.read_text()).get("compare", {})
        for claim in compare.get("claims", {}).values():
            assert not unknown_rows(claim, compare["rows"]), path.name


@pytest.mark.timeout(300)
def test_a_killed_comparison_goes_on_where_it_was(synth: Path, tmp_path: Path) -> None:
    command = [sys.executable, "launch/compare.py", CONFIG, "--methods", "dense,EDST", "--seeds", "2", "--at-once", "1"]
    command += ["--out", str(tmp_path / "grid"), "train.steps=60", f"data.path={synth}", "sparsity.update_every=10"]
    command += ["eval.sequences=500"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 200
    done = tmp_path / "grid"
    while not list(done.glob("*/evaluation/comparison/evaluation.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    made = {path: path.stat().st_mtime_ns for path in done.glob("*/evaluation/comparison/evaluation.json")}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=250)
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(path.stat().st_mtime_ns == then for path, then in made.items()), "what was finished is not repeated"
    assert re.search(rf"of {4 - len(made)} runs", again.stdout)
    table = (done / "table.md").read_text()
    assert re.search(r"\| EDST \| 3 \| [\d,]+ \| 0\.\d\d \| 1\.00 \| 3\.00 \| \d", table)
    assert "± " in table and (done / "figure.png").stat().st_size > 5000
    assert "| verdict |" in table
