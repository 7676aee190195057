from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import pytest
import yaml

from nt_pretrain.config.checks import problems
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.rundir import RunDir, Status
from nt_pretrain.observe.summary import next_commands, read_config, results, status_line, title
from tests.observe.synthetic import fill


def say(tmp_path: Path, **status: object) -> tuple[str, int]:
    rundir = RunDir(tmp_path)
    rundir.write_status(Status(step=120, total_steps=400, **status))  # type: ignore[arg-type]
    line, code = status_line(rundir, again="make demo")
    return line.removeprefix(f"{tmp_path}: "), code


def test_finished(tmp_path: Path) -> None:
    assert say(tmp_path, state="finished", exit_code=0) == ("finished at step 120 of 400", 0)


def test_saved(tmp_path: Path) -> None:
    expected = ("saved at step 120 of 400; run make demo again to go on", 75)
    assert say(tmp_path, state="stopped", exit_code=ExitCode.STOPPED) == expected


def test_failed(tmp_path: Path) -> None:
    line, code = say(tmp_path, state="failed", exit_code=ExitCode.DIVERGED, message="loss nan at step 120")
    assert line == "failed at step 120 of 400, exit code 5 (the loss diverged): loss nan at step 120"
    assert code == 5


def test_failed_with_a_code_of_nobody(tmp_path: Path) -> None:
    assert say(tmp_path, state="failed", exit_code=1, message="oh") == ("failed at step 120 of 400, exit code 1: oh", 1)


def test_running_and_killed(tmp_path: Path) -> None:
    line, code = say(tmp_path, state="running")
    assert (line, code) == (f"running, at step 120 of 400 (process {os.getpid()})", 0)
    line, code = say(tmp_path, state="running", pid=2**22 + 1)  # above the largest process id
    assert (line, code) == ("killed near step 120 of 400; make demo goes on from the newest checkpoint", 1)


@pytest.mark.parametrize("old", [True, False])
def test_a_status_of_an_earlier_attempt_does_not_count(tmp_path: Path, old: bool) -> None:
    rundir = RunDir(tmp_path)
    rundir.write_status(Status(state="stopped", step=1, total_steps=2, exit_code=75))
    line, code = status_line(rundir, again="x", since=time.time() + (60 if old else -60))
    assert ("did not start" in line, code) == ((True, 1) if old else (False, 75))


def test_results_name_every_head_the_ensemble_and_the_unigram_level(tmp_path: Path) -> None:
    text = "\n".join(results(fill(tmp_path)))
    for words in ("unigram       430.00", "head 0         86.89", "head 2", "ensemble       80.21"):
        assert words in text
    assert "3,276,800 tokens in 2m40s" in text
    assert "20 topology updates" in text


def test_results_before_the_first_validation(tmp_path: Path) -> None:
    assert results(fill(tmp_path, reached=20))[0] == "no validation yet"


def configured(rundir: RunDir, **sparsity: object) -> RunDir:
    config = Config.model_validate({"run": {"name": "demo"}, "model": {"heads": 3}, "sparsity": sparsity})
    rundir.write_config(yaml.safe_dump(config.model_dump(mode="json")))
    command = ["launch/pretrain.py", "configs/demo.yaml", "train.steps=400"]
    rundir.write_environment({"command": command, "torchrun": {"LOCAL_WORLD_SIZE": "2"}})
    return rundir


def test_next_commands_build_on_the_one_that_was_run(tmp_path: Path) -> None:
    tensorboard, longer, dense = next_commands(configured(fill(tmp_path), density=0.9))
    launch = "torchrun --standalone --nproc-per-node 2 launch/pretrain.py configs/demo.yaml"
    assert "tensorboard --logdir" in tensorboard
    assert f"{launch} train.steps=2000" in longer
    assert f"{launch} train.steps=400 sparsity.density=1 run.name=demo-dense" in dense


def test_the_dense_run_beside_one_of_blocks_is_one_that_starts(tmp_path: Path) -> None:
    blocks = {"density": 0.5, "unit": 16, "backend": "block", "balance": "line", "group_density": {"ffn": 0.5}}
    *_, dense = next_commands(configured(fill(tmp_path), **blocks))
    options = [word for word in shlex.split(dense.split("  # ")[0]) if word.startswith("sparsity.")]
    rest = [f"sparsity.{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in blocks.items()]
    path = tmp_path / "config.yaml"
    path.write_text("{}")
    config = load_config(path, [*(each.removesuffix("...\n").strip() for each in rest), *options])
    assert config.sparsity.density == 1.0
    assert problems(config) == []


def test_a_stopped_dense_run_is_only_gone_on_with(tmp_path: Path) -> None:
    commands = next_commands(configured(fill(tmp_path, reached=100), density=1.0))
    assert len(commands) == 2
    assert commands[1].split("  # ")[0].rstrip().endswith("configs/demo.yaml train.steps=400")


def test_a_finished_run_of_several_phases_is_not_told_to_train_longer(tmp_path: Path) -> None:
    rundir = configured(fill(tmp_path), density=0.9)
    rundir.members.mkdir()
    written = yaml.safe_load(rundir.config.read_text())
    rundir.config.write_text(yaml.safe_dump(written | {"method": {"name": "edst"}}))
    assert read_config(rundir) is not None
    (tensorboard,) = next_commands(rundir)
    assert "tensorboard" in tensorboard


def test_title(tmp_path: Path) -> None:
    rundir = configured(fill(tmp_path / "demo"), density=0.9)
    assert title(rundir) == "demo: 3 heads, density 0.9, step 400 of 400"
    assert title(RunDir(tmp_path / "bare")) == "bare"


def test_an_unreadable_configuration_is_none(tmp_path: Path) -> None:
    assert read_config(RunDir(tmp_path)) is None
    (tmp_path / "config.yaml").write_text("no_such_section: 1")
    assert read_config(RunDir(tmp_path)) is None
