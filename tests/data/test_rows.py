"""Rows of numbers from shards: exactly what was prepared, in the exact order of a run, and what is damaged is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.loader import TrainLoader
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.position import Position, merge
from nt_pretrain.data.rows import decoded, encoded
from nt_pretrain.data.sources import Sources
from nt_pretrain.data.validation import validation_samples
from tests.data.damage import flip
from tests.data.rowsets import FEATURES, config_of, numbers, prepared


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 and 40 rows, the former in several shards."""
    return prepared(tmp_path_factory.mktemp("rows"), shard_bytes=60_000)


def stream(config: Config, world: int, position: Position | None = None) -> Iterator[tuple[Tensor, Tensor, Position]]:
    """Rows and labels of each global batch, and the position of all ranks after it."""
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(closing(iter(TrainLoader(config, rank=rank, world=world, position=position))))
            for rank in range(world)
        ]
        while True:
            made = [next(loader) for loader in loaders]
            rows, labels = (torch.cat([each.arrays[place] for each in made]) for place in (0, 1))
            places = [Position.from_json(json.loads(json.dumps(each.position_after.to_json()))) for each in made]
            yield rows, labels, merge(places)


def test_a_row_is_an_npy_file_of_its_numbers(tmp_path: Path) -> None:
    row = np.arange(5, dtype=np.float64) / 3
    (tmp_path / "row.npy").write_bytes(encoded(row))
    assert np.array_equal(np.load(tmp_path / "row.npy"), row.astype(np.float32))
    assert np.array_equal(decoded(encoded(row), 5), row.astype(np.float32))
    for content in (encoded(row)[:-1], encoded(row)[:100], b"", encoded(row).replace(b"<f4", b">f4")):
        with pytest.raises(ValueError, match="no npy file of 5 numbers"):
            decoded(content, 5)
    with pytest.raises(ValueError, match="no npy file of 6 numbers"):
        decoded(encoded(row), 6)


def test_webdataset_reads_the_same_rows(clouds: Path) -> None:
    shards = sorted(str(path) for path in (clouds / "validation").glob("*.tar"))
    plain = list(webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("npy", "cls"))
    ((rows, labels),) = validation_samples(config_of(clouds, eval={"micro_batch": 40}), rank=0, world=1)
    assert len(plain) == 40 and labels.tolist() == [label for _, label in plain]
    assert torch.equal(rows, torch.from_numpy(np.stack([row for row, _ in plain])))


def test_prepared_rows_are_those_of_the_source_standardised(clouds: Path) -> None:
    features, labels = numbers(96, 0)
    expected = (features - features.mean(axis=0)) / features.std(axis=0)
    rows = {}
    for batch, found, _ in islice(stream(config_of(clouds), 1), 6):
        rows |= {row.numpy().tobytes(): label for row, label in zip(batch, found.tolist(), strict=True)}
    assert rows == {
        row.astype(np.float32).tobytes(): label for row, label in zip(expected, labels.tolist(), strict=True)
    }
    manifest = read_manifest(clouds / "train")
    assert (manifest.features, manifest.classes, len(manifest.shards)) == (FEATURES, ["0", "1", "2"], 3)
    facts = json.loads((clouds / "standardised.json").read_text())
    assert facts["mean"] == pytest.approx(features.mean(axis=0).tolist())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_global_batches_depend_on_neither_ranks_nor_readers(clouds: Path) -> None:
    expected = list(islice(stream(config_of(clouds), 1), 14))
    assert expected[0][0].shape == (16, FEATURES) and expected[0][0].dtype == torch.float32
    for world, workers in ((2, 0), (4, 0), (1, 2)):
        data = config_of(clouds).data.model_copy(update={"workers": workers})
        found = islice(stream(config_of(clouds).model_copy(update={"data": data}), world), 14)
        for (rows, labels, place), (their_rows, their_labels, their_place) in zip(found, expected, strict=True):
            assert torch.equal(rows, their_rows) and torch.equal(labels, their_labels) and place == their_place
    # Each row once in an epoch of 6 batches, in another order in the next.
    epochs = [torch.cat([rows for rows, _, _ in expected[start : start + 6]]) for start in (0, 6)]
    assert all(len(epoch.unique(dim=0)) == 96 for epoch in epochs) and not torch.equal(epochs[0], epochs[1])


def test_it_goes_on_where_it_was_at_another_world_size(clouds: Path) -> None:
    expected = list(islice(stream(config_of(clouds), 1), 11))
    after = expected[4][2]
    for (rows, labels, _), (their_rows, their_labels, _) in zip(
        islice(stream(config_of(clouds), 4, after), 6), expected[5:], strict=True
    ):
        assert torch.equal(rows, their_rows) and torch.equal(labels, their_labels)


def test_a_damaged_row_is_masked_counted_and_named(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    (shard,) = (path / "train").glob("*.tar")
    flip(shard, 7, byte=130)
    config = config_of(path, data={"max_bad_fraction": 0.02})
    lost, faults = 0, []
    with closing(iter(TrainLoader(config, rank=0, world=1, position=None))) as batches:
        for batch in islice(batches, 6):
            faults += batch.faults
            masked = batch.labels == -100
            lost += int(masked.sum())
            assert not batch.arrays[0][masked].any()
    assert lost == 1
    ((kind, document, count),) = [(fault.kind, fault.document, fault.masked) for fault in faults]
    assert (kind, document, count) == ("damaged document", 7, 1)
    with (
        closing(iter(TrainLoader(config_of(path), rank=0, world=1, position=None))) as batches,
        pytest.raises(DataError, match="At most 0 of the 96 documents"),
    ):
        list(islice(batches, 6))


def test_validation_is_the_same_set_on_any_number_of_ranks(clouds: Path) -> None:
    config = config_of(clouds)
    alone = list(validation_samples(config, rank=0, world=1))
    shared = [list(validation_samples(config, rank=rank, world=2)) for rank in range(2)]
    dealt = [batch for pair in zip(*shared, strict=True) for batch in pair]
    assert sum(int((labels >= 0).sum()) for _, labels in dealt) == 40
    for (rows, labels), (their_rows, their_labels) in zip(dealt, alone, strict=False):
        assert torch.equal(rows, their_rows) and torch.equal(labels, their_labels)


def test_data_that_do_not_fit_the_model_are_told_with_what_fits(clouds: Path) -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"features": 7}, "rows of 6 numbers, model.features is 7; set model.features=6"),
        ({"classes": 4}, "has 3 classes, model.classes is 4; set model.classes=3"),
        ({"family": "resnet20"}, "holds rows, and resnet20 is trained on pictures"),
        ({"family": "llama"}, "holds rows, and this model is trained on text"),
    ]
    for model, words in wrong:
        with pytest.raises(DataError, match=words):
            Sources.of_model(config_of(clouds, model=model), "train")
