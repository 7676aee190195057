"""Saving: killed at every point, failing on one rank, replacing, and how old checkpoints go."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import load_tensors, newest_valid
from nt_pretrain.checkpoint.save import retain, save
from tests.checkpoint.samples import IDENTITY, STATE, expect, load_newest, placed, save_steps, whole
from tests.gloo import RanksFailed, run_ranks

pytestmark = pytest.mark.timeout(60)


def kill_before(event: str, ending: str) -> None:
    """Let this process be killed right before the system call that the interpreter announces as ``event``.

    Audit hooks see every open, mkdir and rename of Python code: the kill falls on an exact point of the real program.
    """

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == event and str(args[0]).endswith(ending):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def save_and_die(rank: int, world: int, root: Path, step: int, victim: int, event: str, ending: str) -> None:
    if rank == victim:
        kill_before(event, ending)
    save_steps(rank, world, root, [step])


def load_then_save(rank: int, world: int, root: Path, step: int) -> Any:
    answer = load_newest(rank, world, root)
    save_steps(rank, world, root, [step])
    return answer


def save_until_killed(rank: int, world: int, root: Path, seconds: float) -> None:
    if rank == 0:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for step in range(1, 10_000):
        tensors = {"model.weight": torch.full((1000, 1000), float(step))}
        save(root, step, placed(tensors, world), {}, identity={}, group=dist.group.WORLD)
        if rank == 0:
            retain(root, 2, verified=root / f"step_{step:08d}")


def save_with_full_disk(rank: int, world: int, root: Path) -> str:
    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "open" and str(args[0]).endswith("__1_0.distcp"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if rank == 1:
        sys.addaudithook(hook)
    with pytest.raises(CheckpointError) as caught:
        save_steps(rank, world, root, [2])
    return str(caught.value)


def save_bad_state(rank: int, world: int, root: Path) -> str:
    tensors = placed(whole(0), world)
    with pytest.raises(CheckpointError) as caught:
        save(root, 1, tensors, {"state": torch.zeros(1)}, identity=IDENTITY, group=dist.group.WORLD)
    return str(caught.value)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


POINTS = [
    (0, "os.mkdir", "step_00000002.tmp"),
    (0, "open", "step_00000002.tmp/__0_0.distcp"),
    (1, "open", "step_00000002.tmp/__1_0.distcp"),
    (0, "open", ".metadata.tmp"),
    (0, "os.rename", ".metadata.tmp"),
    (0, "open", "state.json"),
    (0, "open", "manifest.json"),
    (0, "os.rename", "step_00000002.tmp"),
]


@pytest.mark.parametrize(("victim", "event", "ending"), POINTS, ids=[f"{e} {n}" for _, e, n in POINTS])
def test_killed_save_leaves_the_one_before(tmp_path: Path, victim: int, event: str, ending: str) -> None:
    run_ranks(save_steps, 2, tmp_path, [1])
    with pytest.raises(RanksFailed, match=f"rank {victim} died: killed by SIGKILL"):
        run_ranks(save_and_die, 2, tmp_path, 2, victim, event, ending)
    expect(run_ranks(load_then_save, 2, tmp_path, 2), 1)
    expect(run_ranks(load_newest, 2, tmp_path), 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_killed_after_the_name_is_given(tmp_path: Path) -> None:
    run_ranks(save_steps, 2, tmp_path, [1])
    with pytest.raises(RanksFailed, match="killed by SIGKILL"):
        run_ranks(save_and_die, 2, tmp_path, 2, 0, "open", tmp_path.name)  # the folder is opened to be synced
    expect(run_ranks(load_newest, 2, tmp_path), 2)


@pytest.mark.parametrize(
    ("event", "ending"),
    [("os.rename", "step_00000001"), ("os.rename", "step_00000001.tmp"), ("os.rename", "step_00000001.old")],
)
def test_killed_while_replacing_the_same_step(tmp_path: Path, event: str, ending: str) -> None:
    run_ranks(save_steps, 2, tmp_path, [1])
    with pytest.raises(RanksFailed, match="killed by SIGKILL"):
        run_ranks(save_and_die, 2, tmp_path, 1, 0, event, ending)
    expect(run_ranks(load_then_save, 2, tmp_path, 1), 1)
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.9])
def test_killed_at_any_time(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(RanksFailed, match="killed by SIGKILL"):
        run_ranks(save_until_killed, 2, tmp_path, seconds)
    newest = newest_step_and_values(run_ranks(load_big, 1, tmp_path)[0])
    finished = [int(name[5:]) for name in names(tmp_path) if not name.endswith(".tmp")]
    assert newest == max(finished, default=0)


def load_big(rank: int, world: int, root: Path) -> tuple[int, list[float]]:
    found = newest_valid(root, group=dist.group.WORLD)
    if found is None:
        return 0, [0.0]
    tensors = placed({"model.weight": torch.zeros(1000, 1000)}, world)
    load_tensors(found.path, tensors)
    return found.step, tensors["model.weight"].full_tensor().unique().tolist()


def newest_step_and_values(answer: tuple[int, list[float]]) -> int:
    step, values = answer
    assert values == [float(step)]
    return step


def test_full_disk_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    run_ranks(save_steps, 2, tmp_path, [1])
    messages = run_ranks(save_with_full_disk, 2, tmp_path)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"cannot save {tmp_path / 'step_00000002'}: ")
    assert "No space left on device" in messages[0]
    assert names(tmp_path) == ["step_00000001"]
    expect(run_ranks(load_newest, 2, tmp_path), 1)


def test_state_that_is_not_json(tmp_path: Path) -> None:
    messages = run_ranks(save_bad_state, 2, tmp_path)
    assert messages[0] == messages[1]
    assert "Tensor is not JSON serializable" in messages[0]
    assert names(tmp_path) == []


def test_broken_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    run_ranks(save_steps, 2, tmp_path, [1, 2])
    (tmp_path / "step_00000002" / "__0_0.distcp").unlink()
    found = expect(run_ranks(load_then_save, 2, tmp_path, 2), 1)
    assert "__0_0.distcp is missing" in found.skipped[0]
    expect(run_ranks(load_newest, 2, tmp_path), 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_retain_keeps_the_newest(tmp_path: Path) -> None:
    run_ranks(save_steps, 1, tmp_path, [1, 2, 3, 4])
    assert retain(tmp_path, 4) == []
    assert retain(tmp_path, 2) == [tmp_path / "step_00000002", tmp_path / "step_00000001"]
    assert retain(tmp_path, 1, verified=tmp_path / "step_00000004") == [tmp_path / "step_00000003"]
    assert names(tmp_path) == ["step_00000004"]


def test_retain_never_removes_the_newest_valid(tmp_path: Path) -> None:
    run_ranks(save_steps, 1, tmp_path, [1, 2, 3, 4])
    (tmp_path / "step_00000004" / ".metadata").unlink()
    data = tmp_path / "step_00000003" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[-200] ^= 4
    data.write_bytes(content)
    (tmp_path / "mine").mkdir()
    assert retain(tmp_path, 1) == [tmp_path / "step_00000001"]
    assert names(tmp_path) == ["mine", "step_00000002", "step_00000003", "step_00000004"]
    expect(run_ranks(load_newest, 1, tmp_path), 2)


def test_damaged_newer_checkpoints_take_no_place_and_stay(tmp_path: Path) -> None:
    run_ranks(save_steps, 1, tmp_path, [1, 2, 3, 4, 5])
    for step in (4, 5):
        (tmp_path / f"step_{step:08d}" / ".metadata").unlink()
    assert retain(tmp_path, 2, verified=tmp_path / "step_00000003") == [tmp_path / "step_00000001"]
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000004", "step_00000005"]


def test_retain_removes_nothing_when_none_is_valid(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step_{step:08d}").mkdir()
    assert retain(tmp_path, 1) == []


def test_state_is_readable_by_people(tmp_path: Path) -> None:
    [[path]] = run_ranks(save_steps, 1, tmp_path, [1])
    assert '"tokens": 123456789012345' in (path / "state.json").read_text()
    assert STATE["tokens"] == 123456789012345
