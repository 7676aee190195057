"""launch/report.py on real runs of text and of pictures: one page each, whole, and the same every time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nt_pretrain.methods.manifest import NAME
from nt_pretrain.observe.rundir import RunDir
from tests import warm
from tests.conftest import Corpus, command, documents
from tests.diversity.browser import found_browser, show
from tests.diversity.pages import Page
from tests.evaluation.test_pictures import prepared
from tests.train import launches
from tests.train.method_runs import train

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)


def report(*arguments: str, search: Path | None = None) -> subprocess.CompletedProcess[str]:
    places = [str(ROOT)] if search is None else [str(search), str(ROOT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    words = [str(ROOT / "launch" / "report.py"), *arguments]
    return warm.run(words, cwd=ROOT, env=environment, timeout=200, cold=search is not None)


def read(run: Path) -> Page:
    return Page(run / "report" / "index.html")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Text that would run as a script on a page that forgets to escape it."""
    folder = tmp_path_factory.mktemp("scripted")
    texts = [f"<script>alert('a')</script> & \"b\" <b>3</b> {each}" for each in documents(400, 0)]
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    found = Corpus(folder / "t.jsonl", folder / "data", folder / "small.model")
    data, model = str(found.data), str(found.tokenizer)
    command("launch/prepare.py", "text", str(found.text), "--out", data, "--name", "s", "--validation-share", "0.2")
    command("launch/prepare.py", "tokenizer", data, "--out", model, "--vocab-size", "320", "--kind", "unigram")
    return found


@pytest.fixture(scope="module")
def text_run(scripted: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "text"
    options = ["train.steps=6", "optim.warmup_steps=2", "eval.every_steps=6"]
    launches.finish(launches.start(1, folder, *scripted.overrides, *options), folder)
    return folder


def test_a_run_of_text(text_run: Path) -> None:
    done = report(str(text_run), "--samples", "8", "--units", "2")
    assert done.returncode == 0, done.stderr
    assert f"page: {text_run}/report/index.html" in done.stdout and "picture: " in done.stdout
    page = read(text_run)
    assert page.wrong == []
    assert "<script" not in page.source and "<b>3" not in page.source
    assert "script>" in page.words  # it is there, as words
    assert {"run", "numbers", "curves", "inside", "topology", "tokens", "units"} <= page.anchors
    guesses = [title for title in page.titles if "disagreement" in title]
    assert len(guesses) > 20 and all(title.count("\n") == 4 for title in guesses)  # three heads and the ensemble
    assert re.search(r"head 0: “.*” 0\.\d\d, .*; gave it 0\.\d{3}", guesses[0])
    assert page.images == 1  # the curves
    first = page.source
    assert report(str(text_run), "--samples", "8", "--units", "2").returncode == 0
    assert read(text_run).source == first


@pytest.mark.skipif(found_browser() is None, reason="no chromium or google-chrome on PATH")
def test_a_browser_without_javascript_shows_all_of_it(text_run: Path, tmp_path: Path) -> None:
    browser = found_browser()
    assert browser is not None
    assert report(str(text_run), "--samples", "8", "--units", "2").returncode == 0
    shown = show(browser, text_run / "report" / "index.html", tmp_path / "page")
    assert set(shown.asked) - {"/favicon.ico"} == {"/page.html"}, "nothing else is fetched"
    # Tables, curves and coloured text one below the other, each within the window.
    assert shown.length > 1500 and shown.largest_gap < 200 and shown.colours > 100
    assert (shown.picture[:, -4:] == shown.picture[0, -1]).all(), "nothing reaches the right edge"
    # The same browser, so: what a script would draw is not there, and an empty page is seen to be empty.
    script = tmp_path / "script.html"
    script.write_text("<!DOCTYPE html><body><script>document.body.append('drawn by a script')</script></body>")
    assert show(browser, script, tmp_path / "script").length == 0


def test_without_a_look_inside(
    text_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import report as command_line

    monkeypatch.setattr(sys, "argv", ["report.py", str(text_run), "--samples", "0"])
    assert command_line.main() == 0
    page = read(text_run)
    assert page.wrong == [] and "--samples 0" in page.words and "inside" not in page.anchors
    monkeypatch.setattr(sys, "argv", ["report.py", str(text_run), "--units", "-1"])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert "argument --units: invalid count value: '-1'" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_read_costs_the_look_inside_alone(text_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "text"
    shutil.copytree(text_run, run)
    for path in run.glob("checkpoints/*/*.distcp"):
        path.write_bytes(path.read_bytes()[:-100])
    done = report(str(run), "--samples", "4")
    assert done.returncode == 4, done.stdout
    assert "no look inside: checkpoint error" in done.stderr and "Traceback" not in done.stderr
    page = read(run)
    assert page.wrong == [] and "curves" in page.anchors and "could not be" in page.words


def test_without_a_package_it_says_which(text_run: Path, tmp_path: Path) -> None:
    for name in ("matplotlib", "sentencepiece"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
    done = report(str(text_run), search=tmp_path)
    assert done.returncode == 2
    assert "matplotlib is not installed" in done.stderr and "sentencepiece is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ensemble_of_children_and_their_parent(scripted: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "children"
    options = ["method.name=prune_and_tune", "method.members=2", "sparsity.density=1", "train.steps=12"]
    train(run, [*scripted.overrides, *options], ranks=1)
    assert report(str(run / NAME), "--samples", "6", "--units", "2").returncode == 0
    page = read(run)
    assert page.wrong == []
    assert "parent (no member)" in page.words and "child_1" in page.words and "prune_and_tune" in page.words
    # Two children of one pair share no weight; the parent has no topology to be compared with.
    assert re.search(r"attention\.query\.weight1,02450\.0%0\.0000\.000 – 0\.0000\.3", page.words)
    guesses = [title for title in page.titles if "disagreement" in title]
    assert all(title.count("\n") == 3 and "parent" not in title for title in guesses) and guesses
    (RunDir(run).path / "members" / "child_1" / "checkpoints").joinpath(_newest(run), "manifest.json").write_text("{}")
    done = report(str(run))
    assert done.returncode == 4
    assert "member child_1: " in done.stderr and "it is another checkpoint" in done.stderr


def _newest(run: Path) -> str:
    return sorted((run / "members" / "child_1" / "checkpoints").glob("step_*"))[-1].name


def test_a_run_of_pictures(tmp_path: Path) -> None:
    data = prepared(tmp_path / "pictures", 3, 0)
    config = tmp_path / "pictures.yaml"
    config.write_text(
        "model: {family: resnet20, classes: 3, heads: 2, blocks_in_head: 2}\n"
        "sparsity: {density: 0.5, update_every: 2}\n"
        "train: {steps: 4, global_batch: 8, micro_batch: 8}\n"
        "optim: {algorithm: sgd, lr: 0.05}\n"
        f"data: {{path: {data}, picture_size: 16, picture_shorter: 18, lanes: 8, window: 4, workers: 0}}\n"
        "eval: {every_steps: 4, sequences: 0, micro_batch: 8}\n"
        "run: {device: cpu}\n"
    )
    run = tmp_path / "runs" / "pictures"
    launches.finish(launches.start(1, run, config=str(config)), run)
    done = report(str(run), "--samples", "12", "--units", "2")
    assert done.returncode == 0, done.stderr
    page = read(run)
    assert page.wrong == []
    assert {"inside", "topology", "maps", "features"} <= page.anchors
    # The curves; four rows of a picture and two maps of two heads; two units of two blocks, two classes, two heads.
    assert page.images == 1 + 4 * (1 + 2 * 2) + 3 * 2 * 2
    assert "it is: kind_" in page.words and "kind_1" in page.words
    few = report(str(run), "--samples", "2")
    assert few.returncode == 2 and "--samples 2: 2 samples: a similarity" in few.stderr
