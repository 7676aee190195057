from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nt_pretrain.observe.exitcodes import MEANING, ExitCode, report_failure


def test_codes_are_the_documented_ones() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "FINISHED": 0,
        "CONFIGURATION": 2,
        "DATA": 3,
        "CHECKPOINT": 4,
        "DIVERGED": 5,
        "HANG": 6,
        "TOPOLOGY": 7,
        "STOPPED": 75,
    }
    assert set(MEANING) == set(ExitCode)


def test_without_torchrun_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    report_failure("nobody listens")
    assert list(tmp_path.iterdir()) == []


def test_first_message_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "attempt_0" / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(target))
    report_failure("the cause")
    report_failure("a consequence")
    assert json.loads(target.read_text())["message"]["message"] == "the cause"


def test_an_unwritable_place_is_not_another_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "file" / "error.json"))
    report_failure("the cause")


@pytest.mark.timeout(120)
def test_torchrun_shows_the_message_in_its_table(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\n"
        "from nt_pretrain.observe.exitcodes import ExitCode, report_failure\n"
        "report_failure('train.stpes: no such option; did you mean train.steps?')\n"
        "sys.exit(ExitCode.CONFIGURATION)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 1
    assert "train.stpes: no such option; did you mean train.steps?" in done.stderr
    assert "exitcode  : 2" in done.stderr
