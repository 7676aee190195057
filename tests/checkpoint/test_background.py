"""Saves in the background: what is saved is what was there at the call, whatever training or the disk do meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.checkpoint.background import BackgroundSaver, Progress, Saved
from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.snapshot import HostBuffers
from nt_pretrain.parallel.shard import local
from tests.checkpoint.samples import IDENTITY, STATE, expect, load_newest, placed, save_steps, whole
from tests.gloo import RanksFailed, run_ranks

pytestmark = pytest.mark.timeout(60)

CPU = torch.device("cpu")


def on_event(event: str, ending: str, action: Callable[[], None]) -> None:
    """Run ``action`` in the thread that is about to make the system call which the interpreter announces."""

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == event and str(args[0]).endswith(ending):
            action()

    sys.addaudithook(hook)


def hold_the_writer() -> threading.Event:
    """The background thread of this rank stops before it opens its data file until the event is set."""
    go_on = threading.Event()

    def wait() -> None:
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(30)

    on_event("open", f"__{dist.get_rank()}_0.distcp", wait)
    return go_on


def saver_and_group() -> BackgroundSaver:
    return BackgroundSaver(dist.new_group(backend="gloo"), CPU)


def start(saver: BackgroundSaver, root: Path, step: int, tensors: dict[str, Tensor]) -> None:
    saver.start(root, step, tensors, STATE | {"step": step}, identity=IDENTITY)


def settle(saver: BackgroundSaver) -> Saved:
    assert dist.group.WORLD is not None
    saved = saver.settle(dist.group.WORLD)
    assert saved is not None
    return saved


def save_and_overwrite(rank: int, world: int, root: Path) -> tuple[Progress, Progress, Progress]:
    """Save steps 1 and 2 from tensors that are spoilt before a byte of them is written."""
    saver, go_on = saver_and_group(), hold_the_writer()
    before = saver.progress()
    tensors = placed(whole(1), world)
    start(saver, root, 1, tensors)
    for tensor in tensors.values():
        local(tensor).fill_(1)
    during = saver.progress()
    go_on.set()
    assert settle(saver).path == root / "step_00000001"
    for name, tensor in placed(whole(2), world).items():
        local(tensors[name]).copy_(local(tensor))
    go_on.clear()
    start(saver, root, 2, tensors)
    for tensor in tensors.values():
        local(tensor).zero_()
    go_on.set()
    settle(saver)
    return before, during, saver.progress()


def test_what_changes_after_the_call_is_not_saved(tmp_path: Path) -> None:
    seen = run_ranks(save_and_overwrite, 2, tmp_path)
    assert seen == [(Progress.NONE, Progress.WRITING, Progress.NONE)] * 2
    expect(run_ranks(load_newest, 2, tmp_path), 2)
    (tmp_path / "step_00000002" / "manifest.json").unlink()
    expect(run_ranks(load_newest, 3, tmp_path), 1)


def test_both_ways_of_saving_write_the_same_files(tmp_path: Path) -> None:
    run_ranks(save_and_overwrite, 2, tmp_path / "background")
    run_ranks(save_steps, 2, tmp_path / "waited_for", [1, 2])
    for step in ("step_00000001", "step_00000002"):
        ours, theirs = tmp_path / "background" / step, tmp_path / "waited_for" / step
        assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
        for name in ("__0_0.distcp", "__1_0.distcp", "state.json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_buffers_are_used_again() -> None:
    buffers, tensors = HostBuffers(), whole(1)
    first = {name: tensor.data_ptr() for name, tensor in buffers.copy(tensors).items()}
    assert {name: tensor.data_ptr() for name, tensor in buffers.copy(whole(2)).items()} == first
    assert not set(first.values()) & {tensor.data_ptr() for tensor in tensors.values()}
    grown = tensors | {"more": torch.ones(3)}
    assert torch.equal(buffers.copy(grown)["more"], torch.ones(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_of_gpu_tensors_is_pinned_and_complete() -> None:
    source = torch.arange(1 << 24, device="cuda", dtype=torch.float32)
    copied = HostBuffers().copy({"weight": source})["weight"]
    source.zero_()
    assert copied.is_pinned() and torch.equal(copied, torch.arange(1 << 24, dtype=torch.float32))


def train_while_saving(rank: int, world: int, root: Path) -> tuple[float, bool]:
    """Collectives of both kinds on the default group while the save's own are under way on the other."""
    saver, go_on = saver_and_group(), hold_the_writer()
    start(saver, root, 1, placed(whole(1), world))
    total = torch.zeros(1)
    for step in range(400):
        if step == 100 + 100 * rank:
            go_on.set()  # one rank long before the other, so that its save waits in a collective while it trains
        value = torch.ones(1000)
        dist.all_reduce(value)
        found: list[Any] = [None] * world
        dist.all_gather_object(found, rank)
        total += value[0]
    while saver.progress() is Progress.WRITING:
        time.sleep(0.01)
    return total.item(), settle(saver).path.is_dir()


def test_training_goes_on_while_a_save_is_in_flight(tmp_path: Path) -> None:
    assert run_ranks(train_while_saving, 2, tmp_path) == [(800.0, True)] * 2
    expect(run_ranks(load_newest, 2, tmp_path), 1)


def fail_in_background(rank: int, world: int, root: Path, event: str, ending: str, victim: int) -> tuple[str, str]:
    """What ``settle`` says, and that the next save works."""
    broken = True

    def no_space() -> None:
        if broken and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if rank == victim:
        on_event(event, ending, no_space)
    saver = saver_and_group()
    start(saver, root, 2, placed(whole(2), world))
    while saver.progress() is Progress.WRITING:
        time.sleep(0.01)
    seen = saver.progress()
    with pytest.raises(CheckpointError) as caught:
        settle(saver)
    broken = False
    start(saver, root, 3, placed(whole(3), world))
    settle(saver)
    return str(caught.value), seen.name


@pytest.mark.parametrize(
    ("event", "ending", "victim"),
    [("open", "__1_0.distcp", 1), ("open", ".metadata.tmp", 0), ("open", "manifest.json", 0)],
)
def test_a_full_disk_is_an_error_on_all_ranks(tmp_path: Path, event: str, ending: str, victim: int) -> None:
    run_ranks(save_steps, 2, tmp_path, [1])
    (message, seen), other = run_ranks(fail_in_background, 2, tmp_path, event, ending, victim)
    assert (message, seen) == other and seen == "FAILED"
    assert message.startswith(f"cannot save {tmp_path / 'step_00000002'}: ")
    assert "No space left on device" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]
    expect(run_ranks(load_newest, 2, tmp_path), 3)


def save_into_a_file(rank: int, world: int, root: Path) -> str:
    saver = saver_and_group()
    start(saver, root, 1, placed(whole(1), world))
    with pytest.raises(CheckpointError) as caught:
        settle(saver)
    return str(caught.value)


def test_a_folder_that_cannot_be_written_is_named_on_all_ranks(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.touch()  # permissions would not do: tests may run as root
    messages = run_ranks(save_into_a_file, 2, root)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"cannot save {root / 'step_00000001'}: ")


def die_while_saving(rank: int, world: int, root: Path, victim: int, event: str, ending: str) -> None:
    if rank == victim:
        on_event(event, ending, lambda: os.kill(os.getpid(), signal.SIGKILL))
    saver = saver_and_group()
    start(saver, root, 2, placed(whole(2), world))
    for _ in range(10_000):
        dist.all_reduce(torch.ones(10))


@pytest.mark.parametrize(
    ("victim", "event", "ending"),
    [(1, "open", "__1_0.distcp"), (0, "open", "manifest.json"), (0, "os.rename", "step_00000002.tmp")],
)
def test_killed_in_flight_leaves_the_one_before(tmp_path: Path, victim: int, event: str, ending: str) -> None:
    run_ranks(save_steps, 2, tmp_path, [1])
    with pytest.raises(RanksFailed, match=f"rank {victim} died: killed by SIGKILL"):
        run_ranks(die_while_saving, 2, tmp_path, victim, event, ending)
    found = expect(run_ranks(load_newest, 2, tmp_path), 1)
    assert found.skipped == [f"{tmp_path / 'step_00000002.tmp'} is of a save that has not finished"]


def lose_the_other(rank: int, world: int, root: Path) -> tuple[bool, str]:
    """Rank 1 dies in its thread; rank 0 is about to leave and must not wait for ever."""
    if rank == 1:
        on_event("open", "__1_0.distcp", lambda: os.kill(os.getpid(), signal.SIGKILL))
    saver = saver_and_group()
    start(saver, root, 1, placed(whole(1), world))
    try:
        saver.wait()
    except CheckpointError as error:
        Path(root, "words").write_text(str(error))
    time.sleep(30)
    return True, ""


def test_a_rank_that_leaves_does_not_wait_for_one_that_is_lost(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match="rank 1 died"):
        run_ranks(lose_the_other, 2, tmp_path)
    assert (tmp_path / "words").read_text().startswith(f"cannot save {tmp_path / 'step_00000001'}: ")
