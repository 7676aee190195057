"""The command line of a run before it starts: the plan of every configuration, and one clear message a mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.pretrain import main
from nt_pretrain.config.batch import fitting_world_sizes
from nt_pretrain.config.load import load_config
from nt_pretrain.parallel.mesh import device_problems

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_plan_of_every_configuration(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = max(size for size in fitting_world_sizes(load_config(path, [])) if size <= 4)
    assert main([str(path), "--dry-run", "--world", str(world)]) == 0
    text = capsys.readouterr().out
    assert f"run {path.stem}: " in text
    samples = load_config(path, []).model.samples
    work = (f"{samples} per step", f"FLOPs per {samples.removesuffix('s')}, active")
    for part in ("parameters", *work, "memory per rank (estimate)"):
        assert part in text
    assert "nothing was started" in text


def test_the_plan_of_a_method_says_what_members_and_ensemble_cost(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "configs" / "synth_mlp.yaml")
    assert main([path, "--dry-run", "method.name=prune_and_tune", "method.members=2", "train.steps=1000"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "parameters active training, counted training, executed inference, counted inference, executed" in text
    # 5% of the steps at half of the weights, biases and the last layer whole; masks save nothing.
    assert re.search(r"child_0 6,922 3,850 \S+ \(0\.027\) \S+ \(0\.050\) \S+ \(0\.547\) \S+ \(1\.000\)", text)
    assert re.search(r"all, with every phase 13,844 7,700 \S+ \(0\.755\) \S+ \(0\.800\) ", text)
    assert "relative to one dense model trained 1,000 steps" in text


def pretrain(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a process of its own."""
    done = subprocess.run(
        [sys.executable, "launch/pretrain.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.stpes=10"], "command line: train.stpes: unknown key; did you mean train.steps?"),
        (
            ["model.hidden=big"],
            "command line: model.hidden: big is not allowed; it must be a whole number >= 1 (default 768)",
        ),
        (
            ["model.blocks_in_head=4"],
            "model.blocks_in_head: 4 exceeds model.layers 3; a head owns 0 (only its norm and output layer) to 3 "
            "blocks (a deep ensemble)",
        ),
        (
            ["sparsity.density=0"],
            "command line: sparsity.density: 0 is not allowed; it must be a number > 0 and <= 1 (default 1.0)",
        ),
        (
            ["sparsity.density=1.5"],
            "command line: sparsity.density: 1.5 is not allowed; it must be a number > 0 and <= 1 (default 1.0)",
        ),
        (
            ["data.lanes=2", "train.micro_batch=1", "--dry-run", "--world", "3"],
            "train.global_batch: 8 is not divisible by 3 ranks x train.micro_batch 1 = 3; world sizes that fit this "
            "configuration: 1, 2; nearest global batches that fit: 6 and 9",
        ),
    ],
)
def test_one_clear_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs/tiny.yaml", *arguments]) == 2
    text = capsys.readouterr().err
    assert message in [line.strip() for line in text.splitlines()]
    assert "Traceback" not in text


def test_missing_data_stops_a_run_but_not_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """The run in a process of its own: the exit code is that of the process, and nothing else is written."""
    code, text = pretrain("configs/tiny.yaml", "data.path=data/nowhere", "data.tokenizer=tokenizers/none.model")
    assert code == 2
    assert text == (
        "2 errors in the configuration:\n"
        "  data.path: data/nowhere is no prepared corpus, data/nowhere/train/manifest.json is missing; make it: "
        "python launch/prepare.py text YOUR_TEXTS --out data/nowhere --name nowhere\n"
        "  data.tokenizer: there is no file tokenizers/none.model; make it: python launch/prepare.py tokenizer "
        "data/nowhere --out tokenizers/none.model --vocab-size 512\n"
    )
    assert main(["configs/tiny.yaml", "data.path=data/nowhere", "--dry-run"]) == 0
    assert "data.path: data/nowhere is no prepared corpus" in capsys.readouterr().out


def test_a_missing_file_names_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs/deemo.yaml"]) == 2
    assert "configs/deemo.yaml: there is no such file; did you mean configs/demo.yaml?" in capsys.readouterr().err


def test_a_check_needs_what_a_start_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["configs/demo.yaml", f"data.path={tmp_path}", "--world", "2"]
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"note: data.path: {tmp_path} is no prepared corpus" in told
    assert told.endswith(f"To train: torchrun launch/pretrain.py configs/demo.yaml data.path={tmp_path}\n")
    assert main([*command, "--check"]) == 2
    assert f"data.path: {tmp_path} is no prepared corpus" in capsys.readouterr().err


@pytest.mark.parametrize("world", ["0", "-4", "two"])
def test_ranks_are_counted_from_one(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["configs/demo.yaml", "--dry-run", "--world", world])
    assert left.value.code == 2 and f"--world: invalid positive value: '{world}'" in capsys.readouterr().err


def test_devices_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("configs/demo.yaml", ["run.device=cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_problems(config) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (line,) = device_problems(config)
    assert "--nproc-per-node 2: this node has 1 CUDA device(s), and NCCL takes one rank for each" in line
    assert device_problems(load_config("configs/demo.yaml", ["run.device=cpu"])) == []
