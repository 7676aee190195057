"""The stream of a run: the same whatever ranks and readers serve it, whenever it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.loader import Batch, TrainLoader
from nt_pretrain.data.position import Position, merge
from nt_pretrain.data.shards import index_path
from nt_pretrain.data.text import PADDING
from nt_pretrain.data.tokenizer import END, load_tokenizer
from nt_pretrain.data.validation import unigram_counts, validation_batches
from tests.data.conftest import Sea

ROOT = Path(__file__).resolve().parents[2]


def global_batches(config: Config, world: int, position: Position | None = None) -> Iterator[tuple[Tensor, Position]]:
    """Tokens and documents of each global batch [2, B, T + 1], and the position of all ranks together after it."""
    loaders = [iter(TrainLoader(config, rank=rank, world=world, position=position)) for rank in range(world)]
    with contextlib.ExitStack() as stack:
        for loader in loaders:
            stack.enter_context(contextlib.closing(loader))
        while True:
            batches: list[Batch] = [next(loader) for loader in loaders]
            whole = torch.cat([torch.stack([batch.tokens, batch.documents]) for batch in batches], dim=1)
            # As a checkpoint does it: each rank's position goes through JSON.
            positions = [Position.from_json(json.loads(json.dumps(each.position_after.to_json()))) for each in batches]
            yield whole, merge(positions)


def first(config: Config, world: int, count: int, position: Position | None = None) -> tuple[Tensor, Position]:
    found = list(islice(global_batches(config, world, position), count))
    return torch.stack([tokens for tokens, _ in found]), found[-1][1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_the_global_batches_depend_on_neither_ranks_nor_readers(sea: Sea, packing: str) -> None:
    expected, position = first(sea.config(data={"packing": packing}), 1, 12)
    assert expected.shape == (12, 2, 8, 25)
    for world, workers in ((1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (4, 0), (4, 2)):
        config = sea.config(data={"packing": packing, "workers": workers})
        found, place = first(config, world, 12)
        assert torch.equal(found, expected), (world, workers)
        assert place == position, (world, workers)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_going_on_at_another_world_size_changes_no_token(sea: Sea, packing: str) -> None:
    batch = 24 if packing == "pack" else 8
    config = sea.config(data={"packing": packing}, global_batch=batch)
    expected, last = first(config, 1, 40)
    done, position, place = 0, None, torch.empty(0)
    for world, workers, count in ((4, 0, 1), (2, 1, 8), (1, 2, 13), (4, 0, 18)):
        config = sea.config(data={"packing": packing, "workers": workers}, global_batch=batch)
        place, position = first(config, world, count, position)
        assert torch.equal(place, expected[done : done + count]), (world, done)
        done += count
    assert done == 40
    assert position == last
    assert position.batch == 40
    assert any(cursor.epoch for cursor in position.cursors["data"].values()), "the test goes beyond an epoch"
    assert packing == "truncate" or any(cursor.offset for cursor in position.cursors["data"].values()), (
        "and into a document"
    )


def test_text_and_tokens_give_the_same_batches_where_the_shards_are_the_same(sea: Sea, tmp_path: Path) -> None:
    from nt_pretrain.data.prepare import Recipe, prepare_text
    from tests.data.conftest import write_rows

    rows = write_rows(tmp_path / "rows.jsonl", sea.texts)
    for name, tokenizer in (("text", None), ("tokens", load_tokenizer(sea.tokenizer))):
        prepare_text([rows], tmp_path / name, Recipe("one", 0.1, 10**9, tokenizer=tokenizer), lambda *_: None)
    text, tokens = (sea.config(data={"path": str(tmp_path / name)}) for name in ("text", "tokens"))
    assert torch.equal(first(text, 1, 10)[0], first(tokens, 1, 10)[0])


def test_an_epoch_of_the_lanes_predicts_every_token_once(sea: Sea) -> None:
    """Targets of every lane over an epoch are exactly the documents of that lane, in the plan's order."""
    config = sea.config(global_batch=4)
    split, order = sea.split(), order_of(sea.split(), seed=0, lanes=4, window=5)
    lines = [
        np.concatenate([split.tokens(*order.document(0, lane, n)) for n in range(order.lane_documents(lane))])
        for lane in range(4)
    ]
    steps = min(len(line) - 1 for line in lines) // 24
    found = first(config, 2, steps)[0]
    for lane, line in enumerate(lines):
        assert (found[:, 0, lane, 1:].flatten().numpy() == line[1 : 1 + steps * 24]).all()
    seen = [order.document(0, lane, n) for lane in range(4) for n in range(order.lane_documents(lane))]
    assert len(seen) == len(set(seen)) == split.manifest.documents
    assert sum(map(len, lines)) == sum(len(split.tokens(*place)) for place in seen)


def test_seeds_give_streams_of_their_own(sea: Sea) -> None:
    assert not torch.equal(first(sea.config(), 1, 2)[0], first(sea.config(seed=1), 1, 2)[0])


def test_iterating_again_starts_again(sea: Sea) -> None:
    loader = TrainLoader(sea.config(), rank=0, world=1, position=None)
    one, two = (next(iter(loader)) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens)
    assert one.position_after == two.position_after


def test_a_changed_plan_is_refused_by_name(sea: Sea) -> None:
    _, position = first(sea.config(), 1, 1)
    for data, words in (
        ({"window": 6}, "data.window: 5 -> 6"),
        ({"sequence_length": 12}, "data.sequence_length: 24 ->"),
    ):
        with pytest.raises(DataError, match=words):
            TrainLoader(sea.config(data=data), rank=0, world=1, position=position)
    with pytest.raises(DataError, match=r"the data in data\.path: [0-9a-f]{32} -> [0-9a-f]{32}"):
        TrainLoader(sea.config(tokens=True), rank=0, world=1, position=position)
    larger = iter(TrainLoader(sea.config(global_batch=16), rank=0, world=1, position=position))
    assert next(larger).tokens.shape == (16, 25)


def test_a_tokenizer_of_another_size_is_refused(sea: Sea) -> None:
    config = sea.config().model_copy(update={"model": sea.config().model.model_copy(update={"vocab_size": 512})})
    with pytest.raises(DataError, match=r"has 320 pieces, model\.vocab_size is 512; set model\.vocab_size=320"):
        TrainLoader(config, rank=0, world=1, position=None)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_bad_bytes_stop_the_run_and_are_named(sea: Sea, tmp_path: Path, workers: int) -> None:
    folder = Path(shutil.copytree(sea.text, tmp_path / "sea"))
    shard = sorted((folder / "train").glob("*.tar"))[2]
    entry = np.load(index_path(shard))[4]
    content = bytearray(shard.read_bytes())
    content[int(entry["offset"]) + 9] ^= 1
    shard.write_bytes(content)
    config = sea.config(data={"path": str(folder), "workers": workers})
    batches = iter(TrainLoader(config, rank=0, world=1, position=None))
    with pytest.raises(DataError) as error:
        for _ in range(100):
            next(batches)
    assert str(error.value).startswith(f"{shard}: document 4 (bytes {entry['offset']} to ")
    assert "Traceback" not in str(error.value)


def readers() -> list[psutil.Process]:
    """Reader processes of this process: children of its fork server."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return [reader for server in servers for reader in server.children() if reader.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(90)
def test_a_killed_reader_ends_the_run_with_words(sea: Sea) -> None:
    """It is killed with its queue full, as by a system short of memory: the worst moment."""
    before = set(readers())
    batches = iter(TrainLoader(sea.config(data={"workers": 2}), rank=0, world=1, position=None))
    next(batches)
    mine = [reader for reader in readers() if reader not in before]
    assert len(mine) == 2
    time.sleep(0.5)
    os.kill(mine[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a reader process ended unexpectedly .*data\.workers=0"):
        for _ in range(50):
            next(batches)


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


def validation(config: Config, world: int) -> tuple[Tensor, list[int]]:
    """All validation sequences that are not filling [2, n, T + 1], in their order, and the batches of each rank."""
    ranks = [list(validation_batches(config, rank=rank, world=world)) for rank in range(world)]
    batches = [torch.stack(batch) for same in zip(*ranks, strict=True) for batch in same]
    assert all(batch.shape == (2, config.eval.micro_batch, 25) for batch in batches)
    whole = torch.cat(batches, dim=1)
    return whole[:, (whole[1] != PADDING).any(dim=1)], [len(rank) for rank in ranks]


@pytest.mark.parametrize("packing", ["pack", "truncate"])
@pytest.mark.parametrize("sequences", [1, 7, 12, 10_000])
def test_validation_is_the_same_set_at_every_world_size(sea: Sea, packing: str, sequences: int) -> None:
    config = sea.config(data={"packing": packing}, validation={"sequences": sequences})
    expected, _ = validation(config, 1)
    assert expected.shape[1] == sequences or sequences == 10_000
    for world in (2, 3, 4):
        found, counts = validation(config, world)
        assert torch.equal(found, expected)
        assert len(set(counts)) == 1


def test_validation_reads_each_document_once(sea: Sea) -> None:
    split = Split.open(sea.text / "validation", load_tokenizer(sea.tokenizer))
    places = [(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]
    line = np.concatenate([split.tokens(*place) for place in places])
    packs, _ = validation(sea.config(validation={"sequences": 10_000}), 2)
    assert packs.shape[1] == (len(line) - 1) // 24
    assert (packs[0, :, 1:].flatten().numpy() == line[1 : 1 + packs.shape[1] * 24]).all()
    alone, _ = validation(sea.config(data={"packing": "truncate"}, validation={"sequences": 10_000}), 2)
    assert alone.shape[1] == len(places)
    assert ((alone[0] == END) & (alone[1] != PADDING)).sum() == len(places)


def test_validation_of_less_than_a_sequence_says_so(sea: Sea) -> None:
    with pytest.raises(DataError, match="less than one sequence of 100000 tokens"):
        list(validation_batches(sea.config(data={"sequence_length": 100_000}), rank=0, world=1))


def test_unigram_counts_are_those_of_the_first_tokens(sea: Sea) -> None:
    split = sea.split()
    places = [(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]
    line = np.concatenate([split.tokens(*place) for place in places])
    for limit in (1, 1000, 10**9):
        counts = unigram_counts(sea.config(), limit)
        assert counts.tolist() == np.bincount(line[:limit], minlength=320).tolist()
