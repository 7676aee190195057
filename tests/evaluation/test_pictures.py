"""launch/evaluate.py on a run of pictures, from JPEG files to the record: on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nt_pretrain.data.picture_sample import picture_sample
from nt_pretrain.evaluation.asked import Options
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.load import find, load
from nt_pretrain.evaluation.run import UNFINISHED, run
from nt_pretrain.evaluation.target import config_of, target_of
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.norms import measure_norms_again
from tests.conftest import Corpus, command
from tests.data.damage import flip
from tests.data.photos import jpeg
from tests.evaluation.test_run import evaluate_rank, launch
from tests.gloo import RanksFailed, run_ranks
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
    assert "corrupted inputs" in alone.stdout and "ECE class ↓" in alone.stdout


def test_all_values_are_those_of_the_runs_own_validation(trained: Path) -> None:
    done = launch(str(trained), "--calibrate", "0", "run.threads_per_rank=1")
    assert done.returncode == 0, done.stderr
    # Step 4 is one of every second that end with a topology update.
    assert "note: step 4 ended with a topology update" in done.stdout and "--norms 2048" in done.stdout
    found = json.loads((trained / "evaluation" / "step_00000004" / "evaluation.json").read_text())
    (own,) = [line for line in read_lines(RunDir(trained).metrics) if "validation/loss_ensemble" in line]
    for member, values in found["members"].items():
        assert own[f"validation/loss_{member}"] == values["nll"], member
        for name in ("accuracy", "brier", "ece", "ece_equal_mass", "ece_classwise", "aurc"):
            assert own[f"validation/{name}_{member}"] == values[name], (member, name)


def test_sets_that_do_not_fit_are_refused_before_anything_is_measured(trained: Path, tmp_path: Path) -> None:
    two, three = prepared(tmp_path / "two", 2, 1000), prepared(tmp_path / "three", 3, 2000)
    out = tmp_path / "out"
    asked = ["--calibrate", "0", "--out", str(out)]
    done = launch(str(trained), "--domain", str(three), "--domain", str(two), *asked)
    assert done.returncode == 3, done.stderr
    assert f"--domain {two}: " in done.stderr and "has 2 classes, model.classes is 3" in done.stderr
    assert "Traceback" not in done.stderr and not out.exists()
    done = launch(str(trained), "--domain", str(tmp_path / "nothing"), *asked)
    assert done.returncode == 3 and str(tmp_path / "nothing") in done.stderr and not out.exists()
    done = launch(str(trained), "--domain", str(three), *asked)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "evaluation.json").read_text())
    assert found["robustness"]["domains"][str(three)]["ensemble"]["nll"] > 0.0
    assert found["asked"]["domains"] == [str(three)] and UNFINISHED not in found["notes"]


def damaged_rank(rank: int, world: int, words: str, out: str, domain: str) -> None:
    chosen = chosen_of(words, ["run.threads_per_rank=1"], data=None, samples=0)
    options = Options(Path(out), None, 0.0, None, domains=(domain,))

    def tell(line: str) -> None:
        raise AssertionError(line)

    run(chosen, options, connect(chosen.config), tell)


def test_the_main_measures_are_written_before_robustness(trained: Path, tmp_path: Path) -> None:
    domain = prepared(tmp_path / "other", 3, 3000)
    (shard,) = (domain / "validation").glob("*.tar")
    flip(shard, 2)  # opening does not show it
    with pytest.raises(RanksFailed, match="is damaged"):
        run_ranks(damaged_rank, 1, str(trained), str(tmp_path / "out"), str(domain))
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["robustness"] is None and found["notes"][-1] == UNFINISHED
    assert found["members"]["ensemble"]["nll"] > 0.0


def test_text_is_not_told_from_pictures(trained: Path, corpus: Corpus) -> None:
    done = launch(str(trained), "--ood", str(corpus.data))
    assert done.returncode == 3, done.stderr
    assert f"--ood {corpus.data}: " in done.stderr and "holds text, and resnet20 is trained on pictures" in done.stderr
    assert "Traceback" not in done.stderr


def test_harms_of_text_are_refused(trained: Path) -> None:
    done = launch(str(trained), "--robustness", "swap")
    assert done.returncode == 2, done.stderr
    assert "it is for text, and these data are pictures" in done.stderr and "Traceback" not in done.stderr


def norms_rank(rank: int, world: int, words: str, asked: int) -> dict[str, Any]:
    target = target_of(words)
    config = config_of(target, ["run.threads_per_rank=1"], data=None, samples=0)
    config = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 3})})
    ranks = connect(config)
    model = load(find(target, config, ranks), config, ranks).model
    before = {name: each.clone() for name, each in statistics_of(model).items()}
    told: list[tuple[int, int]] = []
    # 40 training pictures in batches of 3, the last of which would hold one: 13 whole ones, or one of both pictures.
    measured = measure_norms_again(model, config, ranks, asked, lambda done, total: told.append((done, total)))
    assert measured == min(asked, 39)
    rounds = -(-max(1, measured // 3) // world)
    assert told == [(done, rounds) for done in range(1, rounds + 1)]
    after = {name: each.clone() for name, each in statistics_of(model).items()}
    assert all((after[name] != before[name]).any() for name in after)
    sample = picture_sample(config, asked, size=3)
    stem = [pixels for _, pixels in sample.read(rank=0, world=1)]
    return {"after": after, "pixels": torch.cat(stem)}


def test_running_statistics_measured_again_are_the_same_on_any_ranks(trained: Path) -> None:
    (alone,) = run_ranks(norms_rank, 1, str(trained), 1000)
    assert len(alone["pixels"]) == 39 and len({picture.numpy().tobytes() for picture in alone["pixels"]}) == 39
    for world in (2, 3):
        for found in run_ranks(norms_rank, world, str(trained), 1000):
            assert all(torch.equal(found["after"][name], each) for name, each in alone["after"].items()), world


def test_fewer_pictures_than_a_batch_are_one_batch(trained: Path) -> None:
    (found,) = run_ranks(norms_rank, 1, str(trained), 2)
    assert len(found["pixels"]) == 2
    one = launch(str(trained), "--norms", "1", "--calibrate", "0")
    assert one.returncode == 3, one.stderr
    assert "measured on 2 pictures at least" in one.stderr and "Traceback" not in one.stderr


def test_an_evaluation_with_norms_measured_again_says_so(trained: Path, tmp_path: Path) -> None:
    done = launch(str(trained), "--norms", "2048", "--calibrate", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "running statistics measured again on 40 training pictures" in done.stdout
    assert "older than the topology" not in done.stdout
    again = json.loads((tmp_path / "evaluation.json").read_text())
    (own,) = [line for line in read_lines(RunDir(trained).metrics) if "validation/loss_ensemble" in line]
    assert again["norms_measured_on"] == 40 and again["asked"]["norms"] == 2048
    assert again["members"]["ensemble"]["nll"] != own["validation/loss_ensemble"]
