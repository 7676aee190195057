"""launch/evaluate.py on a run of pictures, from JPEG files to the record: on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nt_pretrain.data.picture_sample import picture_sample
from nt_pretrain.evaluation.load import load
from nt_pretrain.evaluation.norms import measure_norms_again
from nt_pretrain.evaluation.target import config_of, target_of
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import connect
from tests.conftest import command
from tests.data.photos import jpeg
from tests.evaluation.test_run import evaluate_rank, launch
from tests.gloo import run_ranks
from tests.train import launches

pytestmark = pytest.mark.timeout(300)


def prepared(folder: Path, classes: int, seed: int) -> Path:
    """Shards of small JPEG pictures: 40 to train on and 30 to measure."""
    for split, count in (("train", 40), ("test", 30)):
        for number in range(count):
            path = folder / split / f"kind_{number % classes}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(20, 20, seed + number))
    train, test, out = str(folder / "train"), str(folder / "test"), folder / "data"
    command("launch/prepare.py", "images", train, "--validation", test, "--out", str(out), "--name", "small")
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    data = prepared(folder, 3, 0)
    config = folder / "pictures.yaml"
    config.write_text(
        "model: {family: resnet20, classes: 3, heads: 2, blocks_in_head: 3}\n"
        "sparsity: {density: 0.5, update_every: 2}\n"
        "train: {steps: 4, global_batch: 8, micro_batch: 4}\n"
        "optim: {algorithm: sgd, lr: 0.05}\n"
        f"data: {{path: {data}, picture_size: 16, picture_shorter: 18, lanes: 8, window: 4, workers: 0}}\n"
        "eval: {every_steps: 0, sequences: 0, micro_batch: 8}\n"
        "run: {device: cpu}\n"
    )
    run = folder / "runs" / "pictures"
    launches.finish(launches.start(2, run, config=str(config)), run)
    return run


def test_pictures_on_one_rank_and_on_two(trained: Path, tmp_path: Path) -> None:
    other = prepared(tmp_path / "other", 2, 1000)  # of other classes
    harms = "jpeg,weight_dropout"
    asked = ["--ood", str(other), "--robustness", harms, "--out", str(tmp_path / "1"), "run.threads_per_rank=1"]
    alone = launch(str(trained), *asked)
    assert alone.returncode == 0, alone.stderr
    expected = (tmp_path / "1" / "evaluation.json").read_bytes()
    options = ["run.threads_per_rank=1", "eval.micro_batch=3"]
    run_ranks(evaluate_rank, 2, str(trained), str(tmp_path / "2"), str(other), options, harms, timeout=150)
    assert (tmp_path / "2" / "evaluation.json").read_bytes() == expected
    found = json.loads(expected)
    assert found["set"]["samples"] == 30 and found["data"]["units"] == "pictures"
    assert found["foreign"]["samples"] == 30
    for member, values in found["members"].items():
        assert values["ece_classwise"] > 0.0 and values["accuracy_top5"] == 1.0, member
    assert [(each["name"], each["severity"]) for each in found["robustness"]["harms"]] == [
        (name, severity) for name in ("jpeg", "weight_dropout") for severity in range(1, 6)
    ]
    assert found["robustness"]["clean"]["ensemble"]["nll"] == found["members"]["ensemble"]["nll"]
    assert (tmp_path / "1" / "robustness.png").stat().st_size > 5_000
    assert "corrupted pictures" in alone.stdout and "ECE class ↓" in alone.stdout


def test_all_values_are_those_of_the_runs_own_validation(trained: Path) -> None:
    done = launch(str(trained), "--calibrate", "0", "run.threads_per_rank=1")
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "evaluation" / "step_00000004" / "evaluation.json").read_text())
    (own,) = [line for line in read_lines(RunDir(trained).metrics) if "validation/loss_ensemble" in line]
    for member, values in found["members"].items():
        assert own[f"validation/loss_{member}"] == values["nll"], member
        for name in ("accuracy", "brier", "ece", "ece_equal_mass", "ece_classwise", "aurc"):
            assert own[f"validation/{name}_{member}"] == values[name], (member, name)


def test_harms_of_text_are_refused(trained: Path) -> None:
    done = launch(str(trained), "--robustness", "swap")
    assert done.returncode == 2, done.stderr
    assert "it is for text, and these data are pictures" in done.stderr and "Traceback" not in done.stderr


def norms_rank(rank: int, world: int, words: str) -> dict[str, Any]:
    target = target_of(words)
    config = config_of(target, ["run.threads_per_rank=1"], data=None, samples=0)
    ranks = connect(config)
    model = load(target, config, ranks).model
    before = {name: each.clone() for name, each in statistics_of(model).items()}
    told: list[tuple[int, int]] = []
    # 40 training pictures in batches of 4: all of them, and one round more than there are batches for three ranks.
    measure_norms_again(model, config, ranks, 40, lambda done, total: told.append((done, total)))
    assert told[-1] == (-(-10 // world), -(-10 // world))
    after = {name: each.clone() for name, each in statistics_of(model).items()}
    assert all((after[name] != before[name]).any() for name in after)
    stem = [pixels for _, pixels in picture_sample(config, 40, size=4, rank=0, world=1)]
    return {"after": after, "pixels": torch.cat(stem)}


def test_running_statistics_measured_again_are_the_same_on_any_ranks(trained: Path) -> None:
    (alone,) = run_ranks(norms_rank, 1, str(trained))
    assert len(alone["pixels"]) == 40 and len({picture.numpy().tobytes() for picture in alone["pixels"]}) == 40
    for world in (2, 3):
        for found in run_ranks(norms_rank, world, str(trained)):
            assert all(torch.equal(found["after"][name], each) for name, each in alone["after"].items()), world


def test_an_evaluation_with_norms_measured_again_says_so(trained: Path, tmp_path: Path) -> None:
    done = launch(str(trained), "--norms", "16", "--calibrate", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "running statistics measured again on 16 training pictures" in done.stdout
    again = json.loads((tmp_path / "evaluation.json").read_text())
    (own,) = [line for line in read_lines(RunDir(trained).metrics) if "validation/loss_ensemble" in line]
    assert again["norms_measured_on"] == 16
    assert again["members"]["ensemble"]["nll"] != own["validation/loss_ensemble"]
