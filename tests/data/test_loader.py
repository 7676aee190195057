"""The stream of a run: the same whatever ranks and readers serve it, whenever it is stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.corpus import order_of
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.loader import Batch, TrainLoader
from nt_pretrain.data.position import Position, merge
from nt_pretrain.data.shards import index_path
from nt_pretrain.data.tokenizer import load_tokenizer
from tests.data.conftest import Sea
from tests.data.damage import flip

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
    from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
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
    """One document in 140 is more than data.max_bad_fraction allows."""
    folder = Path(shutil.copytree(sea.text, tmp_path / "sea"))
    shard = sorted((folder / "train").glob("*.tar"))[2]
    flip(shard, 4)
    offset = np.load(index_path(shard))[4]["offset"]
    config = sea.config(data={"path": str(folder), "workers": workers})
    batches = iter(TrainLoader(config, rank=0, world=1, position=None))
    with pytest.raises(DataError) as error:
        for _ in range(100):
            next(batches)
    assert str(error.value).startswith(f"{shard}: document 4 (bytes {offset} to ")
    assert "At most 0 of the " in str(error.value)
    assert "Traceback" not in str(error.value)
