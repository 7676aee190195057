"""Runs on real JPEG files: a rank is killed, the same command goes on; and validation that no rank or batch changes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.prepare import main
from nt_pretrain.config.load import load_config
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.validation import Validation
from tests import warm
from tests.data.photos import photo
from tests.gloo import run_ranks
from tests.train import launches

CONFIG = "configs/images_small.yaml"
CLASSES = ("boot", "coat", "dress", "shirt")
SAMPLES = 203
OPTIONS = [
    "model.classes=4", "train.steps=12", "train.global_batch=16", "train.micro_batch=8", "train.ema_decay=0.9",
    "data.picture_size=16", "data.picture_shorter=16", "optim.warmup_steps=2", "sparsity.update_every=3",
    "sparsity.density=0.3", "eval.every_steps=6", "eval.sequences=100", "checkpoint.save_every_steps=4",
    "observe.log_every_steps=1", "data.window=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 pictures to train on and 203 to validate with, of four classes told apart by their colour."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 240), ("test", SAMPLES)):
        for number in range(count):
            label = number % len(CLASSES)
            target = folder / split / CLASSES[label]
            target.mkdir(parents=True, exist_ok=True)
            tint = Image.new("RGB", (20, 18), tuple(60 * ((label >> bit) & 1) + 90 for bit in range(3)))
            Image.blend(photo(18, 20, number), tint, 0.6).save(target / f"{number:05d}.jpg", quality=90)
    out = folder / "prepared"
    arguments = ["images", str(folder / "train"), "--validation", str(folder / "test"), "--out", str(out)]
    assert main([*arguments, "--shard-mb", "0.2", "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    launches.finish(launches.start(2, folder, *OPTIONS, f"data.path={pictures}", config=CONFIG), folder)
    return folder


@pytest.mark.timeout(300)
def test_a_killed_rank_and_the_same_command_again(pictures: Path, undisturbed: Path) -> None:
    folder = undisturbed.parent / "killed"
    process = launches.start(2, folder, *OPTIONS, f"data.path={pictures}", config=CONFIG)
    launches.wait_for_step(process, folder, 6)
    launches.workers(process)[1].send_signal(signal.SIGKILL)
    launches.finish(process, folder, expect=1)
    launches.finish(launches.start(2, folder, *OPTIONS, f"data.path={pictures}", config=CONFIG), folder)
    assert "resuming" in (folder / "console.log").read_text()
    launches.assert_same_run(undisturbed, folder, 12)
    tensors = launches.final_tensors(folder, 12)
    assert any(name.startswith("ema.") and name.endswith("running_var") for name in tensors)
    last = [[row for row in read_lines(RunDir(run).metrics) if "validation/loss_ensemble" in row][-1]
            for run in (folder, undisturbed)]  # fmt: skip
    values = [{key: value for key, value in row.items() if "validation" in key} for row in last]
    assert values[0] == values[1] and values[0]["validation/targets"] == 100


@pytest.mark.timeout(120)
def test_what_a_run_says_of_its_validation(undisturbed: Path) -> None:
    row = [row for row in read_lines(RunDir(undisturbed).metrics) if "validation/loss_ensemble" in row][-1]
    for member in ("head_0", "head_1", "head_2", "mean_head", "ensemble", "ensemble_logit"):
        for name in ("loss", "accuracy", "accuracy_top5", "brier", "ece", "ece_equal_mass", "ece_classwise", "aurc"):
            assert f"validation/{name}_{member}" in row and f"validation_ema/{name}_{member}" in row
    assert row["validation/loss_head_0"] != row["validation_ema/loss_head_0"]
    assert row["validation/disagreement"] >= 0.0
    text = (undisturbed / "console.log").read_text()
    assert "validation at step 12: accuracy " in text and " img/s/rank " in text
    board = EventAccumulator(str(RunDir(undisturbed).tensorboard), size_guidance={"images": 0}).Reload()
    assert {"validation/reliability", "validation/disagreement"} <= set(board.Tags()["images"])
    assert [each.step for each in board.Images("validation/reliability")] == [6, 12]
    assert (undisturbed / "figures" / "reliability.png").stat().st_size > 1000
    lines = [line["train/loss"] for line in launches.training_lines(undisturbed)]
    assert sum(lines[-4:]) < 0.8 * sum(lines[:4]), "12 batches are enough to tell four colours"


@pytest.mark.timeout(200)
def test_saved_on_two_ranks_evaluated_on_one(undisturbed: Path) -> None:
    words = ["launch/evaluate.py", str(undisturbed)]
    done = warm.run(words, cwd=launches.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "ensemble" in done.stdout
    assert (undisturbed / "evaluation").is_dir()


def validate_rank(rank: int, world: int, data: str, folder: str, size: int) -> dict[str, float]:
    overrides = [*OPTIONS, f"data.path={data}", "eval.sequences=0", f"eval.micro_batch={size}", "data.workers=0"]
    # Lanes for 3 ranks too.
    overrides += ["train.global_batch=24", "data.lanes=24", "eval.figures=false", "parallel.deterministic_reduce=true"]
    config = load_config(CONFIG, [*overrides, "parallel.deterministic_reduce=false", "run.threads_per_rank=1"])
    ranks = connect(config)
    rundir = RunDir(folder)
    return Validation(config, fresh_state(config, ranks), ranks, rundir, print).measure().values


def undrawn_rank(rank: int, world: int, data: str, folder: str) -> tuple[dict[str, float], list[str]]:
    """A validation whose figures have no place: a file lies where their folder would be."""
    overrides = [*OPTIONS, f"data.path={data}", "data.workers=0", "run.threads_per_rank=1"]
    config = load_config(CONFIG, overrides)
    ranks = connect(config)
    (Path(folder) / "figures").write_text("no folder")
    told: list[str] = []
    found = Validation(config, fresh_state(config, ranks), ranks, RunDir(folder), told.append).measure()
    assert found.figures == {}
    return found.values, told


@pytest.mark.timeout(100)
def test_figures_that_cannot_be_drawn_cost_no_run(pictures: Path, tmp_path: Path) -> None:
    ((values, told),) = run_ranks(undrawn_rank, 1, str(pictures), str(tmp_path), timeout=90)
    assert values["validation/targets"] == 100
    assert len(told) == 1 and told[0].startswith("no figures of this validation: FileExistsError: ")


@pytest.mark.timeout(300)
def test_validation_is_the_same_bits_on_any_ranks_and_for_any_batch_size(pictures: Path, tmp_path: Path) -> None:
    (expected,) = run_ranks(validate_rank, 1, str(pictures), str(tmp_path), 64, timeout=200)
    assert expected["validation/targets"] == SAMPLES and expected["validation/disagreement"] > 0.0
    for world, size in ((1, 7), (2, 64), (3, 7)):
        for found in run_ranks(validate_rank, world, str(pictures), str(tmp_path), size, timeout=200):
            assert found == expected, (world, size)
