"""The command that reads without training: what it prints, and its exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from launch.stream import main
from tests.data.conftest import Gallery, Sea, gallery, sea
from tests.data.damage import flip

__all__ = ["gallery", "sea"]


def test_text(sea: Sea, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"data.tokenizer={sea.tokenizer}", "data.sequence_length=32", "data.workers=0", "--seconds", "0.2"]
    assert main([str(sea.text), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "first batch: 32 sequences of 32 tokens; the first begins"
    assert printed[-1].startswith("next: torchrun --standalone --nproc-per-node 2 launch/pretrain.py configs/demo.yaml")
    assert "model.vocab_size=320" in printed[-1]
    assert printed[-2] == "everything could be read"
    assert " tokens/s with 1 reader process" in printed[-3]


def test_pictures(gallery: Gallery, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(gallery.pictures, tmp_path / "pictures"))
    shard = sorted((folder / "train").glob("*.tar"))[0]
    flip(shard, 1)
    options = ["data.picture_size=24", "data.workers=1", "train.global_batch=8", "data.max_bad_fraction=1"]
    assert main([str(folder), *options, "--seconds", "0.5", "--sheet", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert "first batch: 8 pictures of 24 x 24 in " in printed and "classes (n0" in printed
    assert "damaged document: " in printed and f"{shard.name}: document 1 " in printed
    assert Image.open(tmp_path / "sheet.png").size == (8 * 28, 28)


def test_what_is_wrong_is_said(tmp_path: Path, sea: Sea, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 3
    assert "is not prepared" in capsys.readouterr().err
    assert main([str(sea.text), "data.workrs=1"]) == 2
    assert "did you mean data.workers?" in capsys.readouterr().err
    assert main([str(sea.text), "data.tokenizer=nowhere.model"]) == 3
    assert "tokenizer nowhere.model cannot be loaded" in capsys.readouterr().err
