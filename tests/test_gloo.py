"""The helper that starts ranks: results, failures, deaths, hangs, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.gloo import RanksFailed, run_ranks


def add_ranks(rank: int, world: int, offset: int) -> tuple[int, int, torch.Tensor]:
    total = torch.tensor([float(rank + offset)])
    dist.all_reduce(total)
    return rank, torch.get_num_threads(), total


def read_environment(rank: int, world: int) -> str:
    return os.environ["TEST_OF_RANKS"]


def raise_on_last(rank: int, world: int) -> None:
    if rank == world - 1:
        raise ValueError(f"broken on purpose at rank {rank}")
    dist.barrier()


def die_on_first(rank: int, world: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hang_on_first(rank: int, world: int, folder: Path) -> int:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / str(rank)).write_text(f"{os.getpid()} {child.pid}")
    if rank == 0:
        time.sleep(600)
    return rank


def ended(pid: int) -> bool:
    """True once a process is gone or a zombie: an orphan is collected by the system, when is not ours to say."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.timeout(60)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_results_in_order_of_ranks(world: int) -> None:
    results = run_ranks(add_ranks, world, 10)
    total = float(sum(range(world)) + 10 * world)
    assert results == [(rank, 1, torch.tensor([total])) for rank in range(world)]


@pytest.mark.timeout(60)
def test_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_OF_RANKS", "seen")
    assert run_ranks(read_environment, 2) == ["seen", "seen"]


@pytest.mark.timeout(60)
def test_traceback_of_the_rank_that_raised() -> None:
    with pytest.raises(RanksFailed, match="broken on purpose at rank 1") as caught:
        run_ranks(raise_on_last, 2)
    assert "in raise_on_last" in caught.value.failures[1]


@pytest.mark.timeout(60)
def test_death_is_named_with_its_signal() -> None:
    with pytest.raises(RanksFailed, match="rank 0 died: killed by SIGKILL"):
        run_ranks(die_on_first, 2)


@pytest.mark.timeout(60)
def test_hang_names_missing_ranks_and_leaves_no_process(tmp_path: Path) -> None:
    run_ranks(add_ranks, 1, 0)  # the server is up: its start must not count against the few seconds below
    with pytest.raises(RanksFailed, match=r"ranks \[0\] were missing after 5 s, ranks \[1\] finished"):
        run_ranks(hang_on_first, 2, tmp_path, timeout=5)
    for rank in (0, 1):
        rank_process, child = (int(text) for text in (tmp_path / str(rank)).read_text().split())
        assert not psutil.pid_exists(rank_process)
        assert ended(child)


@pytest.mark.timeout(60)
def test_ranks_leave_with_the_process_that_started_them(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    program = (
        "from pathlib import Path; from tests.gloo import run_ranks; from tests.test_gloo import hang_on_first\n"
        f"run_ranks(hang_on_first, 1, Path({str(tmp_path)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=root)
    try:
        while not (tmp_path / "0").exists() or not (tmp_path / "0").read_text():
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    assert all(ended(int(pid)) for pid in (tmp_path / "0").read_text().split())
