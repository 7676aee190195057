"""launch/evaluate.py on a run saved by two ranks: the same bytes on 1, 2 and 3 ranks, and words for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nt_pretrain.checkpoint.load import load_tensors
from nt_pretrain.evaluation.asked import Options
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.load import find, load
from nt_pretrain.evaluation.run import run
from nt_pretrain.evaluation.target import config_of, target_of
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import connect
from tests import warm
from tests.conftest import Corpus, command
from tests.data.photos import jpeg
from tests.gloo import run_ranks
from tests.train import launches

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ["disagreement", "heads_used", "mask_overlap", "reliability", "reliability_calibrated", "risk_coverage"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run on two ranks, whose last validation was of the first 16 sequences."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    options = [
        "train.steps=10",
        "optim.warmup_steps=2",
        "checkpoint.save_every_steps=5",
        "train.ema_decay=0.5",
    ]
    launches.finish(launches.start(2, folder, *corpus.overrides, *options, "eval.every_steps=0"), folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of other text: words from right to left."""
    folder = tmp_path_factory.mktemp("other")
    words = [f"{'yrots ' * 9} {number} ecno nopu a emit" for number in range(300)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in words))
    share = ["--validation-share", "0.2"]
    command("launch/prepare.py", "text", str(folder / "text.jsonl"), "--out", str(folder / "backwards"), *share)
    return folder / "backwards"


def launch(
    *arguments: str, cwd: Path = ROOT, search: Path | None = None, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """``python launch/evaluate.py ARGUMENTS``, without torchrun; modules of ``search`` come before all others."""
    places = [str(ROOT)] if search is None else [str(search), str(ROOT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    words = [str(ROOT / "launch" / "evaluate.py"), *arguments]
    # A module that stands in for another must be the first one of its name that the process sees.
    return warm.run(words, cwd=cwd, env=environment, timeout=200, cold=cold or search is not None)


def evaluate_rank(
    rank: int, world: int, words: str, out: str, foreign: str | None, overrides: list[str], harms: str | None = None
) -> list[str]:
    """What the command does on ranks that torchrun started; the lines for people."""
    chosen = chosen_of(words, overrides, data=None, samples=0)
    lines: list[str] = []
    options = Options(Path(out), None, 0.2, foreign, harms=harms)
    run(chosen, options, connect(chosen.config), lines.append)
    return lines


def test_the_same_bytes_on_any_number_of_ranks_and_a_picture_of_everything(
    trained: Path, other: Path, tmp_path: Path
) -> None:
    words = [str(trained), "--ood", str(other), "--out", str(tmp_path / "1"), "run.threads_per_rank=1"]
    alone = launch(*words, cold=True)
    assert alone.returncode == 0, alone.stderr
    expected = (tmp_path / "1" / "evaluation.json").read_bytes()
    for world, size in ((2, 4), (3, 4), (2, 1)):
        out = tmp_path / f"{world}x{size}"
        options = ["run.threads_per_rank=1", f"eval.micro_batch={size}"]
        told = run_ranks(evaluate_rank, world, str(trained), str(out), str(other), options, timeout=150)
        assert (out / "evaluation.json").read_bytes() == expected, (world, size)
        # One rank tells, and it tells the same.
        assert "\n".join(told[0]).split("all values")[0].strip() in alone.stdout
        assert all(lines == [] for lines in told[1:])
    found = json.loads(expected)
    assert (found["step"], found["heads"], found["data"]["units"]) == (10, 3, "targets")
    calibration = found["calibration"]
    assert calibration["fitted_on"] + calibration["reported_on"] == found["set"]["samples"]
    assert sorted(path.stem for path in (tmp_path / "1").glob("*.png")) == FIGURES
    assert all(path.stat().st_size > 5_000 for path in (tmp_path / "1").glob("*.png"))
    assert alone.stdout.splitlines()[-1].startswith(f"next: python launch/report.py {trained}")
    _check_overlap(trained, found["mask_overlap"])


def _check_overlap(trained: Path, overlap: dict[str, Any]) -> None:
    """The masks of two heads, compared here once more from the whole tensors of the checkpoint."""
    whole = launches.final_tensors(trained, 10)
    both = either = 0
    for name, mask in whole.items():
        if name.startswith("active.heads.0."):
            twin = whole[name.replace("heads.0.", "heads.2.")].bool()
            both += int((mask.bool() & twin).sum())
            either += int((mask.bool() | twin).sum())
    assert overlap["jaccard"][0][2] == overlap["jaccard"][2][0] == both / either
    assert overlap["jaccard"][1][1] == overlap["expected"][1][1] == 1.0
    assert 0 < overlap["expected"][0][2] < 1


def test_the_losses_are_those_of_the_runs_own_validation(trained: Path) -> None:
    done = launch(str(trained), "--samples", "16", "--calibrate", "0", "run.threads_per_rank=1")
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "evaluation" / "step_00000010" / "evaluation.json").read_text())
    (own,) = [line for line in read_lines(RunDir(trained).metrics) if "validation/loss_ensemble" in line]
    assert own["validation/targets"] == found["set"]["samples"]
    for member, values in found["members"].items():
        assert values["nll"] == pytest.approx(own[f"validation/loss_{member}"], rel=1e-6), member
    assert found["set"]["disagreement"] == pytest.approx(own["validation/disagreement"])
    assert found["calibration"] is None and "calibrated" not in done.stdout
    assert found["data"]["first"] == 16


def test_the_average_of_the_weights_is_what_the_run_validated(trained: Path) -> None:
    done = launch(str(trained), "--average", "--samples", "16", "--calibrate", "0", "run.threads_per_rank=1")
    assert done.returncode == 0, done.stderr
    assert "step 10, average of the weights: " in done.stdout
    found = json.loads((trained / "evaluation" / "step_00000010-average" / "evaluation.json").read_text())
    (own,) = [line for line in read_lines(RunDir(trained).metrics) if "validation_ema/loss_ensemble" in line]
    assert own["validation_ema/loss_ensemble"] != own["validation/loss_ensemble"]
    assert found["members"]["ensemble"]["nll"] == pytest.approx(own["validation_ema/loss_ensemble"], rel=1e-6)


def test_an_older_checkpoint_and_other_data(trained: Path, other: Path) -> None:
    manifest = trained / "checkpoints" / "step_00000005" / "manifest.json"
    done = launch(str(manifest), "--data", str(other), "--calibrate", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "evaluation" / "step_00000005-backwards" / "evaluation.json").read_text())
    assert found["step"] == 5 and found["data"]["locations"] == [f"{other}/validation"]


def test_another_evaluation_is_not_written_over(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("evaluation"))
    folder = copy / "evaluation" / "step_00000010"
    first = launch(str(copy), "--samples", "4")
    assert first.returncode == 0, first.stderr
    kept = (folder / "evaluation.json").read_bytes()
    assert (folder / "reliability_calibrated.png").is_file()
    (folder / "robustness.png").write_bytes(b"of an older program")
    second = launch(str(copy), "--samples", "4", "--calibrate", "0")
    assert second.returncode == 0, second.stderr
    assert "share 0.2, now 0.0" in second.stdout and f"this one: {folder}-2" in second.stdout
    assert (folder / "evaluation.json").read_bytes() == kept and (folder / "robustness.png").exists()
    assert json.loads(Path(f"{folder}-2", "evaluation.json").read_text())["calibration"] is None
    # Asked for alike, though of other ranks and batches: it takes the place of the first, without matplotlib too.
    (tmp_path / "broken" / "matplotlib").mkdir(parents=True)
    (tmp_path / "broken" / "matplotlib" / "__init__.py").write_text("raise RuntimeError('built for another numpy')")
    again = launch(str(copy), "--samples", "4", "eval.micro_batch=3", search=tmp_path / "broken")
    assert again.returncode == 0, again.stderr
    assert "no figures: RuntimeError: built for another numpy" in again.stdout
    assert not list(folder.glob("*.png")) and not Path(f"{folder}-3").exists()
    assert json.loads((folder / "evaluation.json").read_text())["asked"]["samples"] == 4


def test_pictures_are_not_told_from_text(trained: Path, tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / "train" / "kind").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "kind" / f"{number}.jpg").write_bytes(jpeg(20, 20, number))
    out = tmp_path / "pictures"
    share = ["--validation-share", "0.5"]
    command("launch/prepare.py", "images", str(tmp_path / "train"), "--out", str(out), "--name", "few", *share)
    for option in ("--ood", "--domain"):
        done = launch(str(trained), option, str(out))
        assert done.returncode == 3, done.stderr
        assert f"{option} {out}: " in done.stderr and "holds pictures, and this model is trained on text" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    newest = copy / "checkpoints" / "step_00000010"
    victim = next(iter(sorted(newest.glob("*.distcp"))))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    named = launch(str(newest))
    assert named.returncode == 4, named.stderr
    assert f"{victim.name} is damaged" in named.stderr and "Traceback" not in named.stderr
    # Of a run the newest that is whole is measured, and that another was left out is told.
    done = launch(str(copy), "--samples", "4", "--calibrate", "0")
    assert done.returncode == 0, done.stderr
    assert ", step 5: " in done.stdout and "note: checkpoint skipped" in done.stdout
    found = json.loads((copy / "evaluation" / "step_00000005" / "evaluation.json").read_text())
    assert found["step"] == 5 and victim.name in found["notes"][0]


def test_what_is_not_there_ends_with_words(trained: Path, corpus: Corpus, tmp_path: Path) -> None:
    missing = launch(str(trained.parent / "trainde"))
    assert missing.returncode == 2 and f"there are: {trained}" in missing.stderr
    no_data = launch(str(trained), "--data", str(tmp_path / "nothing"))
    assert no_data.returncode == 3, no_data.stderr
    assert str(tmp_path / "nothing") in no_data.stderr
    larger = tmp_path / "larger.model"
    command(
        "launch/prepare.py", "tokenizer", str(corpus.data), "--out", str(larger), "--vocab-size", "320", "--kind", "bpe"
    )
    foreign = launch(str(trained), f"data.tokenizer={larger}")
    assert foreign.returncode == 4 and "tokenizer: checkpoint" in foreign.stderr
    assert not any("Traceback" in each.stderr for each in (missing, no_data, foreign))


@pytest.mark.parametrize("average", [False, True], ids=["weights", "averages"])
def test_no_weights_but_those_that_were_saved(trained: Path, average: bool) -> None:
    """On three ranks, from a checkpoint of two, every weight and mask is that of the checkpoint."""
    run_ranks(_loaded, 3, str(trained), average, timeout=100)


def _loaded(rank: int, world: int, words: str, average: bool) -> None:
    target = target_of(words)
    config = config_of(target, ["run.seed=77"], data=None, samples=0)  # other initial values
    ranks = connect(config)
    loaded = load(find(target, config, ranks), config, ranks, average=average)
    kind = "ema" if average else "model"
    names = dict(loaded.model.named_parameters())
    saved = {f"{kind}.{name}": torch.empty(parameter.shape) for name, parameter in names.items()}
    load_tensors(RunDir(target.rundir.path).checkpoints / loaded.name, saved)
    for name, parameter in names.items():
        assert parameter.full_tensor().equal(saved[f"{kind}.{name}"]), name  # type: ignore[attr-defined]
    assert loaded.layers and all(layer.active.any() for layer in loaded.layers)
