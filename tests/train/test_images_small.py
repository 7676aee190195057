"""configs/images_small.yaml on real JPEGs and ranks, with fewer steps: it learns, and a killed rank costs nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.prepare import main
from nt_pretrain.observe.rundir import RunDir
from tests.train import launches

CONFIG = "configs/images_small.yaml"
STEPS = 20
OPTIONS = [
    "model.classes=3", f"train.steps={STEPS}", "train.global_batch=16", "train.micro_batch=8",
    "optim.warmup_steps=2", "sparsity.update_every=6", "checkpoint.save_every_steps=5", "observe.log_every_steps=1",
    "eval.every_steps=10", "eval.sequences=0", "eval.micro_batch=7", "data.workers=0",
]  # fmt: skip


def shape(kind: int, draw: np.random.Generator) -> bytes:
    """A grey JPEG of 28 x 28: bright above, in the middle or below, of any brightness and place."""
    pixels = draw.integers(0, 60, (28, 28))
    top = 9 * kind + int(draw.integers(0, 4))
    pixels[top : top + 6, 4:24] += int(draw.integers(100, 190))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; 60 pictures each to train and 11 to validate, which is no multiple of a batch."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", 60), ("test", 11)):
        for kind in range(3):
            (folder / split / f"kind{kind}").mkdir(parents=True)
            for number in range(count):
                (folder / split / f"kind{kind}" / f"{number}.jpg").write_bytes(shape(kind, draw))
    command = ["images", str(folder / "train"), "--validation", str(folder / "test"), "--out", str(folder / "data")]
    assert main([*command, "--workers", "1"]) == 0
    return folder / "data"


def validations(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in RunDir(folder).metrics.read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key.startswith("validation") or key == "step"}
        for line in lines
        if any(key.startswith("validation") for key in line)
    ]


@pytest.mark.timeout(300)
def test_it_learns_and_a_killed_rank_costs_nothing(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [*OPTIONS, f"data.path={data}"]
    launches.finish(launches.start(2, whole, *options, config=CONFIG), whole)
    process = launches.start(2, killed, *options, config=CONFIG)
    launches.wait_for_step(process, killed, 12)
    launches.workers(process)[0].kill()
    assert process.wait(120) != 0
    launches.finish(launches.start(2, killed, *options, config=CONFIG), killed)
    assert f"resuming {killed} from step " in (killed / "console.log").read_text()
    launches.assert_same_run(whole, killed, STEPS)
    measured = validations(whole)
    assert [values["step"] for values in measured] == [10, 20] and measured == validations(killed)
    first, last = (float(np.mean([line["train/loss"] for line in part])) for part in halves(whole))
    assert last < 0.8 * first, "20 batches are enough to see where the light is"


def halves(folder: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    lines = launches.training_lines(folder)
    return lines[:5], lines[-5:]
