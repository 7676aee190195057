from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.observe.synthetic import fill

ROOT = Path(__file__).resolve().parents[2]


def report(*arguments: str, blocked: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | ({"PYTHONPATH": str(blocked)} if blocked else {})
    command = [sys.executable, str(ROOT / "launch" / "report.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=100)


@pytest.mark.timeout(120)
def test_picture_numbers_and_what_to_run_next(tmp_path: Path) -> None:
    fill(tmp_path)
    done = report(str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}: finished at step 400 of 400" in done.stdout
    assert "ensemble       80.21" in done.stdout
    assert f"picture: {tmp_path}/report/curves.png" in done.stdout
    assert (tmp_path / "report" / "curves.png").stat().st_size > 10_000
    assert "tensorboard --logdir" in done.stdout.splitlines()[-1]


@pytest.mark.timeout(120)
def test_status_is_one_line_and_the_runs_exit_code(tmp_path: Path) -> None:
    fill(tmp_path, reached=200)
    done = report(str(tmp_path), "--status", "--again", "make demo")
    assert done.returncode == 75
    assert done.stdout == f"{tmp_path}: saved at step 200 of 400; run make demo again to go on\n"


@pytest.mark.timeout(120)
def test_a_folder_without_a_run(tmp_path: Path) -> None:
    done = report(str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} is not a run directory" in done.stderr


@pytest.mark.timeout(120)
def test_without_matplotlib_the_numbers_are_still_told(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    blocked = tmp_path / "blocked"
    (blocked / "matplotlib").mkdir(parents=True)
    (blocked / "matplotlib" / "__init__.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    done = report(str(tmp_path / "run"), blocked=blocked)
    assert done.returncode == 2
    assert "matplotlib is not installed" in done.stderr and ".[report]" in done.stderr
    assert "ensemble       80.21" in done.stdout
