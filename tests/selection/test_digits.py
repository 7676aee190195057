"""The demonstration: a selection from a random network reads digits better than a random selection of as many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nt_pretrain.selection.digits import run_digits
from nt_pretrain.selection.solvers import Solver

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments: str, search: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``python launch/select_neurons.py ARGUMENTS``; modules of ``search`` come before all others."""
    places = os.pathsep.join(str(each) for each in (search, ROOT) if each is not None)
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "select_neurons.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def test_a_selection_reads_better_than_a_random_one() -> None:
    pytest.importorskip("sklearn")
    demo = run_digits(120, [Solver("exact"), Solver("greedy")], group=8, rounds=2, compared=2, seed=0)
    everyone, by_chance, best, descent = (demo.choices[at] for at in range(4))
    assert everyone.accuracy < 0.25 and by_chance.kept == best.kept
    assert best.accuracy > by_chance.accuracy + 0.1 and descent.accuracy > by_chance.accuracy + 0.1
    assert best.energy < by_chance.energy < everyone.energy
    assert demo.least_squares > best.accuracy  # a curiosity: fitting the same features is far better


def test_the_command_prints_a_table_and_writes_the_neurons(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "new" / "digits.json"
    options = ["--neurons", "40", "--group", "6", "--compared", "2", "--rounds", "1", "--solver", "greedy"]
    done = launch("--demo", "digits", *options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "qaoa p=3" in done.stdout and "Grover's search" in done.stdout and str(out) in done.stdout
    record = json.loads(out.read_text())
    assert record["solver"] == "greedy" and 0 < len(record["kept"]) < 40
    assert record["kept"] == sorted(set(record["kept"]))


def test_mistakes_are_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("raise ModuleNotFoundError('sklearn')")
    missing = launch("--demo", "digits", search=tmp_path)
    assert missing.returncode == 2 and "scikit-learn" in missing.stderr and "pip install" in missing.stderr
    nothing = launch("--group", "40", "--keep", "0", "--qaoa-layers", "7")
    assert nothing.returncode == 2 and "Traceback" not in nothing.stderr + missing.stderr
    for words in ("name either", "--group 40", "--keep 0", "--qaoa-layers 7"):
        assert words in nothing.stderr
