"""A thousand faults in real shards: every good sample comes once and in its place, and every fault is named."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from nt_pretrain.config.schema import Config
from nt_pretrain.data.faults import WHOLE_SHARD, Fault, merged
from nt_pretrain.data.loader import Batch, TrainLoader
from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
from nt_pretrain.data.shards import index_path
from nt_pretrain.data.sources import Sources
from nt_pretrain.data.text import PADDING
from nt_pretrain.data.tokenizer import load_tokenizer
from tests.data.conftest import Sea, texts, write_rows
from tests.data.damage import cut, flip
from tests.data.storage.flaky import Flaky, flaky_server, mixture
from tests.data.test_readers import readers

WORLD, LANES, LENGTH = 2, 8, 16
PASSING = ("503", "429", "drop", "flip", "reset", "short")


@dataclass
class Fleet:
    """About 1,970 short documents in some 90 shards, one document a sequence."""

    folder: Path
    sea: Sea

    def config(self, path: object, cache: Path, stall_seconds: float = 3) -> Config:
        data = {
            "path": str(path), "packing": "truncate", "sequence_length": LENGTH, "lanes": LANES, "workers": 1,
            "max_bad_fraction": 1.0, "stall_seconds": stall_seconds, "cache_dir": str(cache), "cache_gb": 1,
            "window": 16, "read_timeout_seconds": 2, "retries": 8, "prefetch_batches": 2,
        }  # fmt: skip
        return self.sea.config(data=data, global_batch=16)


@pytest.fixture(scope="module")
def fleet(sea: Sea, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")
    rows = write_rows(folder / "rows.jsonl", [text[:40] for text in texts(2000, 3)])
    recipe = Recipe("fleet", 0.01, 900, tokenizer=load_tokenizer(sea.tokenizer))
    prepare_text([rows], folder / "data", recipe, lambda *_: None)
    return Fleet(folder / "data", sea)


def epoch(config: Config, each: object = None, more: int = 0) -> Iterator[list[Batch]]:
    """The batches of all ranks of an epoch and a bit more; ``each(number)`` is called before every one."""
    count = Sources.open(config, "train").documents["data"] // 16 + 2 + more
    with contextlib.ExitStack() as stack:
        ranks = [iter(TrainLoader(config, rank=rank, world=WORLD, position=None)) for rank in range(WORLD)]
        for rank in ranks:
            stack.enter_context(contextlib.closing(rank))
        for number in range(count):
            if callable(each):
                each(number)
            yield [next(rank) for rank in ranks]


def check(fleet: Fleet, config: Config, found: list[list[Batch]], bad: set[tuple[int, int]]) -> list[Fault]:
    """Every row is its document, or padding if that is bad; returns the faults, which mask as many as were masked."""
    pristine = Sources.open(fleet.config(fleet.folder, Path(config.data.cache_dir)), "train")
    split, order = pristine.splits[0], pristine.orders(config)[0]
    masked = 0
    for number, ranks in enumerate(found):
        rows = np.concatenate([batch.tokens.numpy() for batch in ranks]).reshape(LANES, 2, -1)
        documents = np.concatenate([batch.documents.numpy() for batch in ranks]).reshape(LANES, 2, -1)
        for lane in range(LANES):
            for each in range(2):
                turn, position = divmod(number * 2 + each, order.lane_documents(lane))
                place = order.document(turn, lane, position)
                tokens = split.tokens(*place)
                expected = np.concatenate([tokens[:LENGTH], tokens[-1:]]) if len(tokens) > LENGTH else tokens
                if place in bad:
                    assert (documents[lane, each] == PADDING).all(), (number, place)
                    masked += 1
                else:
                    assert (documents[lane, each] == PADDING).sum() == LENGTH + 1 - len(expected)
                    assert rows[lane, each, : len(expected)].tolist() == expected.tolist(), (number, place)
    faults = merged(fault for ranks in found for batch in ranks for fault in batch.faults)
    assert sum(fault.masked for fault in faults) == masked
    return faults


def damage(folder: Path, draw: random.Random, flips: int, cuts: int, losses: int, indices: int) -> tuple[set, set, int]:
    """Damage shards of ``folder``: bad (shard, document), the places that must be named, and the number of faults."""
    shards = sorted((folder / "train").glob("*.tar"))
    lengths = [len(np.load(index_path(shard))) for shard in shards]
    whole = draw.sample(range(len(shards)), cuts + losses + indices)
    bad = {(shard, document) for shard in whole for document in range(lengths[shard])}
    named = set()
    for turn, shard in enumerate(whole):
        if turn < cuts:
            cut(shards[shard], draw.randrange(shards[shard].stat().st_size))
            kind = "changed shard"
        elif turn < cuts + losses:
            shards[shard].unlink()
            kind = "missing shard"
        else:
            file = index_path(shards[shard])
            content = bytearray(file.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
            kind = "damaged index"
        named.add((kind, shards[shard].name, WHOLE_SHARD))
    left = [(s, d) for s in range(len(shards)) if s not in whole for d in range(lengths[s])]
    for shard, document in draw.sample(left, flips):
        size = int(np.load(index_path(shards[shard]))[document]["size"])
        flip(shards[shard], document, draw.randrange(size))
        bad.add((shard, document))
        named.add(("damaged document", shards[shard].name, document))
    return bad, named, flips + cuts + losses + indices


def places(faults: list[Fault]) -> set[tuple[str, str, int]]:
    """Kind, shard and document of what was lost, whatever the epoch."""
    return {(fault.kind, fault.shard, fault.document) for fault in faults if fault.masked}


@pytest.mark.timeout(280)
@pytest.mark.parametrize("round_", range(5))
def test_damaged_shards_and_readers(fleet: Fleet, tmp_path: Path, round_: int) -> None:
    """190 faults a round: bits flipped, shards cut and lost, indices damaged, readers killed and stopped."""
    draw = random.Random(round_)
    folder = Path(shutil.copytree(fleet.folder, tmp_path / "data"))
    bad, named, injected = damage(folder, draw, flips=160, cuts=12, losses=8, indices=5)
    config, before = fleet.config(folder, tmp_path / "cache"), set(readers())
    last = signal.SIGSTOP if round_ < 2 else signal.SIGKILL  # a stopped one is waited for
    hits = dict(zip(draw.sample(range(1, 110), 5), [signal.SIGKILL] * 4 + [last], strict=True))

    def each(number: int) -> None:
        mine = [reader for reader in readers() if reader not in before]
        if number in hits and mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(draw.choice(mine).pid, hits[number])

    faults = check(fleet, config, list(epoch(config, each)), bad)
    assert places(faults) == named
    replaced = [fault.kind for fault in faults if not fault.masked]
    assert 1 <= len(replaced) <= 5, "a reader that is hit while it is being replaced anyway is one fault with it"
    assert set(replaced) <= {"reader died", "reader stalled"}
    assert injected + len(hits) == 190


@pytest.mark.timeout(280)
def test_a_breaking_server(fleet: Fleet, tmp_path: Path) -> None:
    """Lost shards are masked and named; 30 % of the other requests fail in some way, and nothing is lost by it."""
    folder = Path(shutil.copytree(fleet.folder, tmp_path / "data"))
    bad, named, _ = damage(folder, random.Random(9), flips=0, cuts=0, losses=9, indices=0)
    with flaky_server(folder) as server:
        config = fleet.config(server.url, tmp_path / "cache", stall_seconds=60)
        broken = counted(server, "train/manifest.json")
        faults = check(fleet, config, list(epoch(config, more=4)), bad)
    assert places(faults) == named
    noted = [fault.words for fault in faults if fault.kind == "retried read"]
    assert len(broken) >= 60
    # A connection that ends before the answer is tried again by the HTTP client itself, if it was used before.
    assert len(noted) >= sum(fault != "reset" for _, fault in broken)
    assert all(any(name in words for words in noted) for name, fault in broken if fault != "reset")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".part"]


def counted(server: Flaky, spared: str) -> list[tuple[str, str]]:
    """Let requests fail but those for ``spared``; the list gets (name, fault) of each that did."""
    choose, broken = mixture(dict.fromkeys(PASSING, 0.05), seed=4), list[tuple[str, str]]()

    def spare(name: str, number: int) -> str | None:
        fault = None if name == spared else choose(name, number)
        if fault is not None and (server.folder / name).exists():  # otherwise its answer is 404
            broken.append((name, fault))
        return fault

    server.choose = spare
    return broken
