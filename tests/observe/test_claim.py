"""One process at a time in a run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nt_pretrain.observe.claim import claim

HOLD = """
import sys, time
from pathlib import Path
from nt_pretrain.observe.claim import claim
taken = claim(Path(sys.argv[1]), print)
print("taken", flush=True)
sys.stdin.readline()
"""


@pytest.mark.timeout(60)
def test_a_second_process_waits_and_is_told_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "taken\n"
        notes: list[str] = []
        holder = claim(path, notes.append, patience=0.5)
        assert isinstance(holder, str) and holder.startswith(f"process {other.pid} on ")
        assert notes == [f"{tmp_path} is in use by {holder}; waiting up to 0 s for it to end"]
        other.kill()
        other.wait()
        taken = claim(path, notes.append, patience=30)
    assert not isinstance(taken, str)
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    taken.close()
