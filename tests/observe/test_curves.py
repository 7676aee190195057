from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nt_pretrain.observe.curves import draw
from nt_pretrain.observe.record import Recorder
from nt_pretrain.observe.rundir import RunDir
from tests.observe.synthetic import fill


def image(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def has(pixels: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels.astype(int) - wanted).max(axis=-1) <= 4).any())


def test_a_sparse_run_has_three_panels(tmp_path: Path) -> None:
    target = draw(fill(tmp_path), title="demo")
    assert target == tmp_path / "report" / "curves.png"
    pixels = image(target)
    assert pixels.shape[0] > 1000 and pixels.shape[1] == 1430
    for colour in ("#0072B2", "#D55E00", "#009E73", "#000000"):  # three heads and the ensemble
        assert has(pixels, colour)


def test_a_dense_run_has_one_panel(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    rundir.create()
    recorder = Recorder(rundir, start_step=0, tensorboard=False)
    for step in range(1, 20):
        recorder.metrics(step, {"train/loss": 5.0 / step, "train/loss_head_0": 5.0 / step})
    assert image(draw(rundir, title="dense")).shape[0] < 900


def test_drawing_again_replaces_the_picture(tmp_path: Path) -> None:
    first = image(draw(fill(tmp_path / "a", steps=400, reached=150, resume_at=None), title="a"))
    again = image(draw(fill(tmp_path / "a", steps=400), title="a"))
    assert first.shape == again.shape and (first != again).any()


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no lines yet"):
        draw(RunDir(tmp_path), title="empty")


def test_a_run_that_diverged_is_drawn(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    rundir.create()
    recorder = Recorder(rundir, start_step=0, tensorboard=False)
    for step in range(1, 5):
        recorder.metrics(
            step, {"train/loss_head_0": float("nan") if step > 2 else 3.0, "validation/loss_head_0": 900.0}
        )
    assert draw(rundir, title="diverged").exists()
