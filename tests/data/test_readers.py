"""Reader processes: watched, replaced when they fail, gone when nobody needs them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.loader import TrainLoader
from tests.data.conftest import Sea

ROOT = Path(__file__).resolve().parents[2]


def readers() -> list[psutil.Process]:
    """Reader processes of this process: children of its fork server."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return [reader for server in servers for reader in server.children() if reader.status() != psutil.STATUS_ZOMBIE]


def started(before: set[psutil.Process]) -> list[psutil.Process]:
    """The two readers that were started since."""
    mine = [reader for reader in readers() if reader not in before]
    assert len(mine) == 2
    return sorted(mine, key=lambda reader: reader.pid)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_dies_or_stalls_is_replaced_and_no_batch_changes(sea: Sea, number: int) -> None:
    """It is hit with its queue full, as by a system short of memory: the worst moment."""
    config = sea.config(data={"workers": 2, "stall_seconds": 4})
    expected = list(islice(TrainLoader(sea.config(), rank=0, world=1, position=None), 60))
    before, told = set(readers()), list[str]()
    with contextlib.closing(iter(TrainLoader(config, rank=0, world=1, position=None, warn=told.append))) as batches:
        found = [next(batches)]
        hit = started(before)[1]
        time.sleep(0.5)
        os.kill(hit.pid, number)
        found += list(islice(batches, 59))
        assert not psutil.pid_exists(hit.pid) or hit.status() == psutil.STATUS_ZOMBIE
        assert hit not in started(before)
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.tokens, two.tokens)
        assert one.position_after == two.position_after
    kinds = [fault.kind for batch in found for fault in batch.faults]
    assert kinds == ["reader died" if number == signal.SIGKILL else "reader stalled"]
    if number == signal.SIGSTOP:
        # It is named before it is given up, by what it did last.
        assert len(told) == 2
        assert re.search(
            rf"reader \d of 2 \(process {hit.pid}\) has handed over nothing for \d s; it began document", told[0]
        )


@pytest.mark.timeout(120)
def test_readers_that_fail_again_and_again_end_the_run_with_words(sea: Sea) -> None:
    config = sea.config(data={"workers": 2, "reader_restarts": 1})
    before = set(readers())
    ended, first_batch = threading.Event(), threading.Event()

    def kill_all() -> None:
        first_batch.wait()
        while not ended.wait(0.02):
            for reader in set(readers()) - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    reader.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        batches = iter(TrainLoader(config, rank=0, world=1, position=None))
        next(batches)
        first_batch.set()
        words = r"a reader process ended unexpectedly .*Readers were replaced 1 x for this batch.*data\.workers=0"
        with pytest.raises(DataError, match=words):
            for _ in range(500):
                next(batches)
    finally:
        first_batch.set()
        ended.set()
        killer.join()


PARENT = """
import sys, time
from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import TrainLoader
if __name__ == "__main__":
    batches = iter(TrainLoader(Config.model_validate_json(sys.argv[1]), rank=0, world=1, position=None))
    next(batches)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(20):
        next(batches)
    print("twenty more", flush=True)
    sys.stdin.readline()
    raise ValueError("a mistake in training, with readers at work")
"""


@pytest.fixture
def trainer(sea: Sea, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process that reads with two readers, and its fork server and readers."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    config = sea.config(data={"workers": 2}).model_dump_json()
    pipe = subprocess.PIPE
    parent = subprocess.Popen(
        [sys.executable, str(script), config], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert sum("forkserver" in " ".join(process.cmdline()) for process in family) >= 3, "a fork server and two readers"
    yield parent, family
    parent.kill()  # does nothing where it has ended
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    parent.communicate()


@pytest.mark.timeout(90)
def test_readers_leave_with_a_killed_training_process(
    trainer: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    parent, family = trainer
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(family, timeout=30)[1] == []


@pytest.mark.timeout(90)
def test_readers_go_on_when_everybody_is_told_to_end_and_leave_when_training_fails(
    trainer: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    """SIGTERM of a scheduler goes to every process; the training process handles it, and readers must serve it."""
    parent, family = trainer
    assert parent.stdin is not None and parent.stdout is not None
    servers = set(psutil.Process(parent.pid).children())
    readers_of_parent = [process for process in family if process not in servers]
    assert len(readers_of_parent) == 2
    for reader in readers_of_parent:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            reader.send_signal(number)
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "twenty more\n"
    _, errors = parent.communicate("\n", timeout=60)
    assert parent.returncode == 1
    assert errors.strip().endswith("ValueError: a mistake in training, with readers at work")
    assert psutil.wait_procs(family, timeout=30)[1] == []
