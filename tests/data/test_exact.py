"""The order of a run: the same for every number of ranks and readers, each sample once, and to be taken up anywhere.

Here readers are called in this process: what each of W readers of each of R ranks is asked for, and how that is put
together. Real processes are in test_loader.py and test_readers.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.lane import Reading
from nt_pretrain.data.loader import TrainLoader
from nt_pretrain.data.manifest import file_sha256, read_manifest
from nt_pretrain.data.position import Cursors, Position, merge
from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
from nt_pretrain.data.readers import parts_of
from nt_pretrain.data.shards import Shard, index_path, write_shard
from nt_pretrain.data.sources import Sources, mixture_of
from nt_pretrain.data.text import PADDING, Cursor
from nt_pretrain.data.tokenizer import load_tokenizer
from tests.data.conftest import Gallery, Sea, texts, write_rows
from tests.data.damage import flip

LANES = 840
"""The least number that 1 to 8 divide."""


@dataclass(frozen=True)
class Ocean:
    """1,700 documents of tokens in many shards."""

    path: Path
    sea: Sea

    def config(self, **data: object) -> Config:
        options = {"path": str(self.path), "lanes": LANES, "sequence_length": 12, "window": 3, **data}
        return self.sea.config(data=options, global_batch=LANES)


@pytest.fixture(scope="module")
def ocean(sea: Sea, tmp_path_factory: pytest.TempPathFactory) -> Ocean:
    folder = tmp_path_factory.mktemp("ocean")
    rows = write_rows(folder / "rows.jsonl", [text[:60] for text in texts(1760, 7)])
    recipe = Recipe("ocean", 0.01, 4_000, tokenizer=load_tokenizer(sea.tokenizer))
    prepare_text([rows], folder / "tokens", recipe, lambda *_: None)
    return Ocean(folder / "tokens", sea)


def batches_of(config: Config, world: int, readers: int, count: int, start: Position | None) -> tuple[Tensor, Position]:
    """``count`` global batches [count, B, T + 1] as ``world`` ranks of ``readers`` readers put them together."""
    step = start.batch + 1 if start else 1
    ranks = []
    for rank in range(world):
        loader = TrainLoader(config, rank=rank, world=world, position=start)
        cursors = loader._cursors
        of_reader = [
            parts_of(config, loader._plan, cursors, reader, readers, step, Reading()) for reader in range(readers)
        ]
        made = [loader._assemble([next(parts) for parts in of_reader], step + n, []) for n in range(count)]
        ranks.append(made)
    whole = torch.stack([torch.cat([rank[n].tokens for rank in ranks]) for n in range(count)])
    return whole, merge([rank[-1].position_after for rank in ranks])


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_one_order_for_worlds_of_1_to_8_and_0_to_4_readers(ocean: Ocean, packing: str) -> None:
    """A rank without readers reads as one reader does."""
    config = ocean.config(packing=packing)
    expected, position = batches_of(config, 1, 1, 2, None)
    assert len(torch.unique(expected.view(-1, 13), dim=0)) > LANES // 2
    for world in range(1, 9):
        for readers in range(1, 5):
            found, place = batches_of(config, world, readers, 2, None)
            assert torch.equal(found, expected), (world, readers)
            assert place == position, (world, readers)


def test_every_document_of_an_epoch_comes_exactly_once(ocean: Ocean) -> None:
    """Truncated: a sequence is a document. The lanes end their epochs within one document of each other."""
    config = ocean.config(packing="truncate", sequence_length=60)
    split = Sources.open(config, "train").splits[0]
    total = split.manifest.documents
    per_lane = -(-total // LANES)
    found, position = batches_of(config, 3, 2, per_lane, None)
    expected = sorted(split.tokens(n, d).tolist() for n, shard in enumerate(split.manifest.shards)
                      for d in range(shard.documents))  # fmt: skip
    orders = Sources.open(config, "train").orders(config)[0]
    rows = found.view(per_lane, LANES, -1)
    read = [rows[n, lane] for lane in range(LANES) for n in range(orders.lane_documents(lane))]
    assert sorted(row[: int((row != 0).sum())].tolist() for row in read) == expected
    assert all(cursor.epoch == 1 for lane, cursor in position.cursors["data"].items()
               if orders.lane_documents(lane) == per_lane)  # fmt: skip


def test_going_on_from_every_position_of_an_epoch(sea: Sea) -> None:
    config = sea.config(data={"packing": "truncate", "lanes": 2}, global_batch=2)
    documents = Sources.open(config, "train").documents["data"]
    count = documents // 2 + 2
    expected = [
        batch for batch, _ in zip(iter(TrainLoader(config, rank=0, world=1, position=None)), range(count), strict=False)
    ]
    for stop in range(count - 1):
        place = Position.from_json(json.loads(json.dumps(expected[stop].position_after.to_json())))
        world = 1 + stop % 2
        following = [next(iter(TrainLoader(config, rank=rank, world=world, position=place))) for rank in range(world)]
        assert torch.equal(torch.cat([batch.tokens for batch in following]), expected[stop + 1].tokens), stop
        assert merge([batch.position_after for batch in following]) == expected[stop + 1].position_after


def test_a_change_of_world_in_the_middle(ocean: Ocean) -> None:
    config = ocean.config()
    expected, last = batches_of(config, 1, 1, 9, None)
    position, done = None, 0
    for world, readers, count in ((8, 2, 2), (5, 4, 1), (7, 1, 2), (6, 3, 1), (3, 2, 3)):
        found, position = batches_of(config, world, readers, count, position)
        assert torch.equal(found, expected[done : done + count]), (world, readers)
        done += count
    assert position == last


def test_a_digest_that_is_wrong_ends_the_run(sea: Sea) -> None:
    """Had a document come twice or never, the sum of the marks of the epoch would show it."""
    config = sea.config(data={"packing": "truncate"}, global_batch=4)
    first = next(iter(TrainLoader(config, rank=0, world=1, position=None))).position_after
    wrong = {
        lane: Cursor(c.epoch, c.document, c.offset, c.digest ^ (lane == 2)) for lane, c in first.cursors["data"].items()
    }
    cursors: Cursors = {"data": wrong}
    loader = TrainLoader(config, rank=0, world=1, position=Position(first.plan, 1, cursors))
    with pytest.raises(Exception, match=r"lane 2 of .* has not read every document of epoch 0 exactly once"):
        for _ in islice(loader, 60):
            pass


def mixed(sea: Sea, **data: object) -> Config:
    sources = {"text": str(sea.text), "tokens": str(sea.tokens)}
    weights = {"text": 3.0, "tokens": 1.0}
    return sea.config(data={"sources": sources, "weights": weights, "packing": "truncate", **data}, global_batch=8)


def test_a_mixture_reads_each_source_as_often_as_its_weight_and_in_its_own_order(sea: Sea) -> None:
    config = mixed(sea)
    batches = list(islice(TrainLoader(config, rank=0, world=1, position=None), 125))
    after = batches[-1].position_after.cursors
    read = {}
    for name, order in zip(("text", "tokens"), Sources.open(config, "train").orders(config), strict=True):
        read[name] = sum(c.epoch * order.lane_documents(lane) + c.document for lane, c in after[name].items())
    assert read == {"text": 750, "tokens": 250}
    sources = Sources.open(config, "train")
    place = [iter_documents(sources, config, number) for number in range(2)]
    rows = torch.cat([batch.tokens for batch in batches]).view(125, 4, 2, -1)
    mixture = mixture_of(config)
    for step in range(1, 126):
        for lane in range(4):
            for each in range(2):
                source = mixture.source(step, lane * 2 + each)
                tokens = next(place[source][lane])
                row = rows[step - 1, lane, each]
                kept = np.concatenate([tokens[:24], tokens[-1:]]) if len(tokens) > 24 else tokens
                assert row[: len(kept)].tolist() == kept.tolist()


def iter_documents(sources: Sources, config: Config, number: int) -> list[Iterator[np.ndarray]]:
    """Of each lane of a source: its documents' tokens in order, epoch after epoch."""
    split, order = sources.splits[number], sources.orders(config)[number]

    def of_lane(lane: int) -> Iterator[np.ndarray]:
        epoch = 0
        while True:
            for position in range(order.lane_documents(lane)):
                yield split.tokens(*order.document(epoch, lane, position))
            epoch += 1

    return [of_lane(lane) for lane in range(order.lanes)]


def test_a_mixture_goes_on_at_another_world_size_and_with_other_weights_to_come(sea: Sea) -> None:
    config = mixed(sea, packing="pack")
    expected, last = batches_of(config, 1, 1, 30, None)
    position, done = None, 0
    for world, readers, count in ((2, 1, 7), (4, 1, 11), (1, 3, 12)):
        found, position = batches_of(config, world, readers, count, position)
        assert torch.equal(found, expected[done : done + count])
        done += count
    assert position == last
    later = mixed(sea, packing="pack", curriculum={21: {"tokens": 1.0}})
    first, middle = batches_of(later, 1, 1, 20, None)
    assert torch.equal(first, expected[:20])
    _, end = batches_of(later, 2, 1, 5, middle)
    assert end.cursors["text"] == middle.cursors["text"], "weight 0 from step 21 on"
    assert end.cursors["tokens"] != middle.cursors["tokens"]


def test_allowed_changes_go_on_at_the_same_documents(sea: Sea) -> None:
    config = sea.config(data={"packing": "truncate"})
    place = list(islice(TrainLoader(config, rank=0, world=1, position=None), 12))[-1].position_after
    changed = sea.config(data={"packing": "truncate", "allow_change": True, "window": 7}, tokens=True)
    loader = TrainLoader(changed, rank=0, world=1, position=place)
    assert [change.split(":")[0] for change in loader.changes] == ["the data in data.path", "data.window"]
    batches = list(islice(loader, 60))  # beyond the end of the epoch, whose digest still comes out
    assert batches[0].position_after.cursors["data"][0].document == place.cursors["data"][0].document + 2
    assert batches[-1].position_after.cursors["data"][0].epoch >= 1
    assert not any((batch.documents[:, 0] == PADDING).any() for batch in batches)


def test_pictures_come_in_the_same_order_with_the_same_crops(gallery: Gallery) -> None:
    config = gallery.config(data={"picture_jitter": 0.4})
    expected = list(islice(TrainLoader(config, rank=0, world=1, position=None), 12))
    assert expected[0].pixels.shape == (8, 3, 24, 24) and expected[0].pixels.dtype == torch.uint8
    assert expected[0].pixels.is_contiguous(memory_format=torch.channels_last)
    assert set(torch.cat([batch.labels for batch in expected]).tolist()) == {0, 1, 2}
    place = expected[4].position_after
    ranks = [list(islice(TrainLoader(config, rank=rank, world=4, position=place), 7)) for rank in range(4)]
    for number, one in enumerate(expected[5:]):
        assert torch.equal(torch.cat([rank[number].pixels for rank in ranks]), one.pixels)
        assert torch.equal(torch.cat([rank[number].labels for rank in ranks]), one.labels)
    again = next(
        iter(TrainLoader(gallery.config(data={"workers": 2, "picture_jitter": 0.4}), rank=0, world=1, position=None))
    )
    assert torch.equal(again.pixels, expected[0].pixels)


def test_an_epoch_of_pictures_holds_each_label_as_often_as_the_shards(gallery: Gallery) -> None:
    config = gallery.config(global_batch=4)
    split = Sources.open(config, "train").splits[0]
    labels = sorted(
        split.picture(n, d)[1] for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)
    )
    per_lane = [Sources.open(config, "train").orders(config)[0].lane_documents(lane) for lane in range(4)]
    batches = list(islice(TrainLoader(config, rank=0, world=1, position=None), max(per_lane)))
    found = [int(batches[n].labels[lane]) for lane in range(4) for n in range(per_lane[lane])]
    assert sorted(found) == labels


@pytest.mark.parametrize("data", [{"tokens": False}, {"tokens": True}])
def test_going_on_from_every_position_inside_documents(sea: Sea, data: dict[str, bool]) -> None:
    config = sea.config(data={"lanes": 2, "sequence_length": 96}, global_batch=2, **data)
    expected = list(islice(TrainLoader(config, rank=0, world=1, position=None), 60))
    assert expected[-1].position_after.cursors["data"][0].epoch >= 1
    for stop in range(59):
        place = Position.from_json(json.loads(json.dumps(expected[stop].position_after.to_json())))
        following = next(iter(TrainLoader(config, rank=0, world=1, position=place)))
        assert torch.equal(following.tokens, expected[stop + 1].tokens), stop
        assert following.position_after == expected[stop + 1].position_after


def test_lines_of_the_configuration_may_change_places(sea: Sea) -> None:
    one = mixed(sea, packing="pack")
    other = mixed(sea, packing="pack", sources={"tokens": str(sea.tokens), "text": str(sea.text)})
    expected, _ = batches_of(one, 1, 1, 12, None)
    first, position = batches_of(one, 1, 1, 6, None)
    rest, _ = batches_of(other, 1, 1, 6, position)
    assert torch.equal(torch.cat([first, rest]), expected)


def test_lost_tokens_keep_their_places_in_packed_lines(sea: Sea, tmp_path: Path) -> None:
    """Where the number of tokens is known, not one token of another document moves."""
    folder = Path(shutil.copytree(sea.tokens, tmp_path / "sea"))
    for number, shard in enumerate(sorted((folder / "train").glob("*.tar"))):
        flip(shard, number % len(np.load(index_path(shard))), 0)
    expected = list(islice(TrainLoader(sea.config(tokens=True), rank=0, world=1, position=None), 60))
    config = sea.config(tokens=True, data={"path": str(folder), "max_bad_fraction": 1.0})
    found = list(islice(TrainLoader(config, rank=0, world=1, position=None), 60))
    masked = 0
    for one, two in zip(found, expected, strict=True):
        lost = one.documents == PADDING
        assert torch.equal(one.tokens[~lost], two.tokens[~lost])
        assert torch.equal(one.documents[~lost], two.documents[~lost])
        assert (one.tokens[lost] == 0).all()
        assert one.position_after == two.position_after
        masked += int(lost.sum())
    assert masked > 0
    assert {fault.kind for batch in found for fault in batch.faults} == {"damaged document"}


def test_a_lane_of_which_nothing_can_be_read_ends_the_run(sea: Sea, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sea.text, tmp_path / "sea"))
    for shard in (folder / "train").glob("*.tar"):
        shard.unlink()
    config = sea.config(data={"path": str(folder), "max_bad_fraction": 1.0})
    with pytest.raises(DataError, match=r"not one of the \d+ documents of lane 0 of .* could be read in epoch 0"):
        next(iter(TrainLoader(config, rank=0, world=1, position=None)))


def test_data_that_changes_under_its_readers_is_refused(sea: Sea, tmp_path: Path) -> None:
    """The next readers find other shards in the place of those that the run began with."""
    folder = Path(shutil.copytree(sea.text, tmp_path / "sea"))
    loader = TrainLoader(sea.config(data={"path": str(folder)}), rank=0, world=1, position=None)
    first = next(iter(loader))
    shutil.rmtree(folder)
    shutil.copytree(sea.tokens, folder)
    with pytest.raises(DataError, match="the data was changed while the run was reading it"):
        next(iter(loader))
    assert first.tokens.shape == (8, 25)


def test_tokens_beyond_the_vocabulary_are_refused(sea: Sea, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sea.tokens, tmp_path / "sea"))
    for shard in (folder / "train").glob("*.tar"):
        opened = Shard.open(shard)
        rows = [np.frombuffer(opened.document(n), "<u2").copy() for n in range(len(opened))]
        rows[0][0] = 320
        write_shard(shard, [row.tobytes() for row in rows], "tokens")
    manifest = read_manifest(folder / "train")
    entries = [
        replace(each, sha256=file_sha256(folder / "train" / each.name),
                index_sha256=file_sha256(index_path(folder / "train" / each.name)))
        for each in manifest.shards
    ]  # fmt: skip
    (folder / "train" / "manifest.json").write_text(replace(manifest, shards=entries).to_text())
    batches = iter(TrainLoader(sea.config(tokens=True, data={"path": str(folder)}), rank=0, world=1, position=None))
    with pytest.raises(DataError, match="token 320 of a vocabulary of 320: the shards of tokens were not made with"):
        list(islice(batches, 60))


FEW_FILES = """
import resource, sys
from itertools import islice
from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import TrainLoader
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
loader = TrainLoader(Config.model_validate_json(sys.argv[1]), rank=0, world=1, position=None)
resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))
batches = list(islice(loader, 40))
print(sum(fault.masked for batch in batches for fault in batch.faults))
print(sum(int(batch.tokens.sum()) for batch in batches))
"""


def test_running_out_of_open_files_loses_nothing(ocean: Ocean) -> None:
    config = ocean.sea.config(data={"path": str(ocean.path), "lanes": 4, "window": 64}, global_batch=8)
    assert len(list((ocean.path / "train").glob("*.tar"))) > 24
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, config.model_dump_json()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = sum(int(batch.tokens.sum()) for batch in islice(TrainLoader(config, rank=0, world=1, position=None), 40))
    assert done.stdout.split() == ["0", str(expected)], done.stderr
