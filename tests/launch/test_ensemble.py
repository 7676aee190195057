"""launch/ensemble.py: runs, members, checkpoints and ensembles become one ensemble.json; words for what cannot."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import chosen_of, one_of
from nt_pretrain.methods.manifest import NAME, read_ensemble
from tests.conftest import Corpus
from tests.evaluation.members import CHECKPOINT, ensemble_of, write_members
from tests.evaluation.test_ensemble import evaluated
from tests.gloo import run_ranks

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = {
    "a": ["model.heads=1", "model.blocks_in_head=0", "run.name=alone"],
    "b": ["model.heads=2", "run.seed=1"],
    "c": ["model.heads=1", "run.seed=2"],
    "long": ["data.sequence_length=48"],
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def runs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "runs"
    members = {str(folder / name): [*corpus.overrides, *more] for name, more in MEMBERS.items()}
    run_ranks(write_members, 1, members, "configs/tiny.yaml", timeout=120)
    return folder


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command without a process of its own, for what needs no process group."""
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import ensemble

    def call(*arguments: str) -> Done:
        code = ensemble.main(list(arguments))
        told = capsys.readouterr()
        return Done(code, told.out, told.err)

    return call


def test_runs_checkpoints_and_ensembles_are_listed_relative_to_it(
    runs: Path, tmp_path: Path, together: Callable[..., Done]
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    runs = tmp_path / "runs"
    ensemble_of(runs, {"ticket": "c"}, ticket={"made": {"seed": 7}})
    done = together(str(tmp_path / "out"), str(runs / "a"), str(runs / "b" / CHECKPOINT), str(runs / NAME))
    assert done.returncode == 0, done.stderr
    found = read_ensemble(tmp_path / "out" / NAME)
    assert [(each.name, each.path, each.step) for each in found.members] == [
        ("a", "../runs/a", 3), ("b", "../runs/b", 3), ("ticket", "../runs/c", 3),
    ]  # fmt: skip
    assert found.members[2].made == {"seed": 7} and found.members[0].made == {"run": "alone", "seed": 0}
    assert "3 members, 4 heads" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: python launch/evaluate.py {tmp_path}/out/{NAME}"
    # Moved together they still know each other, and that is what evaluation reads.
    (tmp_path / "elsewhere").mkdir()
    for name in ("out", "runs"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    chosen = chosen_of(str(tmp_path / "elsewhere" / "out"), [], data=None, samples=0)
    assert chosen.voices == ["a", "b.head_0", "b.head_1", "ticket"]


def test_an_ensemble_in_an_ensemble_is_its_members(runs: Path, tmp_path: Path, together: Callable[..., Done]) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    runs = tmp_path / "runs"
    ensemble_of(runs, {"half": "b", "other": "c"}, half={"heads": [1]})
    inner, outer = tmp_path / "deep" / "inner", tmp_path / "outer"
    assert together(str(inner), str(runs / NAME), "--combiner", "logit").returncode == 0
    done = together(str(outer), str(inner / NAME), str(runs / "a"))
    assert done.returncode == 0, done.stderr
    assert f"{inner / NAME}: all 2 members of this ensemble (combined by logit there)" in done.stdout
    found = read_ensemble(outer / NAME)
    assert [(each.name, each.path, each.heads) for each in found.members] == [
        ("half", "../runs/b", [1]), ("other", "../runs/c", None), ("a", "../runs/a", None),
    ]  # fmt: skip
    assert chosen_of(str(outer), [], data=None, samples=0).voices == ["half.head_1", "other", "a"]
    again = together(str(tmp_path / "twice"), str(outer / NAME), str(inner / NAME))
    assert again.returncode == 2 and "name it once" in again.stderr


@pytest.mark.parametrize("name", ["evolve", "select_neurons"])
def test_commands_of_one_network_say_which_members_there_are(
    name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    command = importlib.import_module(name)
    shutil.copytree(runs, tmp_path / "runs")
    manifest = ensemble_of(tmp_path / "runs", {"one": "a", "other": "b"})
    for words in (manifest, manifest.parent):
        assert command.main([str(words)]) == 2
        told = capsys.readouterr().err
        assert f"{manifest}: an ensemble of 2 members, and this command takes one network" in told
        assert f"{tmp_path}/runs/a/{CHECKPOINT}, {tmp_path}/runs/b/{CHECKPOINT}" in told and "Traceback" not in told
    alone = ensemble_of(tmp_path / "runs", {"one": "a"})
    found = one_of(str(alone))
    assert (found.rundir.path, found.checkpoint) == (tmp_path / "runs" / "a", tmp_path / "runs" / "a" / CHECKPOINT)
    ensemble_of(tmp_path / "runs", {"one": "b"}, one={"heads": [0]})
    with pytest.raises(ConfigErrors, match="not all heads speak"):
        one_of(str(alone))


def test_members_of_one_name_get_names_of_their_own(runs: Path, tmp_path: Path, together: Callable[..., Done]) -> None:
    shutil.copytree(runs / "b", tmp_path / "x" / "a")
    done = together(str(tmp_path / "out"), str(runs / "a"), str(tmp_path / "x" / "a"))
    assert done.returncode == 0, done.stderr
    assert [each.name for each in read_ensemble(tmp_path / "out" / NAME).members] == ["a-3", "a-3-2"]
    again = together(str(tmp_path / "out" / NAME), str(runs / "a"))
    assert again.returncode == 2 and "is there already; give another OUT, or --replace" in again.stderr
    assert together(str(tmp_path / "out"), str(runs / "a"), "--replace").returncode == 0
    assert len(read_ensemble(tmp_path / "out" / NAME).members) == 1


def test_the_best_are_kept_and_that_it_flatters_is_told(runs: Path, tmp_path: Path) -> None:
    members = [str(runs / name) for name in ("a", "b", "c")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "ensemble.py"), str(tmp_path), *members, "--top", "2", "--samples", "6"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " nll " in line and line.startswith("  ")]
    values = {name: float(value) for name, _, value, *_ in rows}
    assert list(values) == sorted(values, key=values.__getitem__) and len(values) == 3
    assert [" ".join(row[3:]) for row in rows] == ["kept", "kept", "left out"]
    found = read_ensemble(tmp_path / NAME)
    assert {each.name for each in found.members} == set(list(values)[:2])
    assert found.method["top"] == 2 and found.method["of"] == 3 and found.method["by"] == "nll"
    assert "the ensemble looks better than it is" in done.stdout
    # Alone, the best one has the value that the choice was made by.
    best, out = str(runs / next(iter(values))), str(tmp_path / "alone")
    (alone,) = run_ranks(evaluated, 1, {best: out}, None, 6, timeout=120)
    nll = json.loads(alone[best][1])["members"]["ensemble"]["nll"]
    assert f"{nll:.4f}" == f"{min(values.values()):.4f}"


def test_what_does_not_fit_is_told(runs: Path, tmp_path: Path, together: Callable[..., Done]) -> None:
    for members, code, words in (
        (["a", "long"], 2, "data.sequence_length of a is 32, of long 48"),
        (["a", "a"], 2, "the same checkpoint as"),
        (["a", "nothing"], 2, "there is no such folder"),
        (["a", "b", "--top", "3"], 2, "--top 3: there are 2 members"),
        (["a", "b", "--top", "0"], 2, "--top 0: there are 2 members"),
    ):
        arguments = [each if each.startswith("-") or each.isdigit() else str(runs / each) for each in members]
        done = together(str(tmp_path / "out"), *arguments)
        assert (done.returncode, (tmp_path / "out" / NAME).exists()) == (code, False), (members, done.stderr)
        assert words in done.stderr and "Traceback" not in done.stderr
    shutil.copytree(runs / "a", tmp_path / "empty", ignore=shutil.ignore_patterns("step_*"))
    done = together(str(tmp_path / "out"), str(tmp_path / "empty"))
    assert done.returncode == 4 and "has no whole checkpoint yet" in done.stderr
