"""The validation set: the same sequences and pictures, each once, at every world size."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import evaluation_picture
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.samples import NO_LABEL
from nt_pretrain.data.storage.store import Folder
from nt_pretrain.data.text import PADDING
from nt_pretrain.data.tokenizer import END, load_tokenizer
from nt_pretrain.data.validation import unigram_counts, validation_batches, validation_samples
from nt_pretrain.eval.corrupted_set import Corruptor
from tests.data.conftest import Gallery, Sea
from tests.data.damage import flip


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


def pictures(config: Config, world: int) -> tuple[Tensor, Tensor]:
    """All validation pictures that are not filling and their labels, in their order."""
    ranks = [list(validation_samples(config, rank=rank, world=world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    batches = [batch for same in zip(*ranks, strict=True) for batch in same]
    assert all(pixels.shape == (4, 3, 24, 24) and pixels.dtype == torch.uint8 for pixels, _ in batches)
    assert all(pixels.is_contiguous(memory_format=torch.channels_last) for pixels, _ in batches)
    pixels, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    return pixels[labels != NO_LABEL], labels[labels != NO_LABEL]


@pytest.mark.parametrize("sequences", [0, 5, 1000])
def test_validation_samples_are_the_same_set_at_every_world_size(gallery: Gallery, sequences: int) -> None:
    config = gallery.config(validation={"sequences": sequences})
    pixels, labels = pictures(config, 1)
    split = Split(Folder(gallery.pictures / "validation"), read_manifest(gallery.pictures / "validation"), None)
    places = [(n, d) for n, shard in enumerate(split.manifest.shards) for d in range(shard.documents)]
    assert len(places) > 5
    expected = [split.picture(*place) for place in places[: sequences or None]]
    assert labels.tolist() == [label for _, label in expected]
    for picture, (content, _) in zip(pixels, expected, strict=True):
        assert torch.equal(picture, evaluation_picture(content, size=24, shorter=32))
    for world, workers in ((2, 0), (3, 0), (2, 1)):
        other = gallery.config(validation={"sequences": sequences}, data={"workers": workers})
        found = pictures(other, world)
        assert torch.equal(found[0], pixels) and torch.equal(found[1], labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_never_leaves_a_picture_out(gallery: Gallery, tmp_path: Path, workers: int) -> None:
    folder = Path(shutil.copytree(gallery.pictures, tmp_path / "pictures"))
    shard = next(iter(sorted((folder / "validation").glob("*.tar"))))
    flip(shard, 2)
    config = gallery.config(data={"path": str(folder), "workers": workers, "max_bad_fraction": 1.0})
    with pytest.raises(DataError, match=r"document 2 \(bytes .* is damaged"):
        list(validation_samples(config, rank=0, world=1))


def test_every_picture_is_changed_by_its_number(gallery: Gallery) -> None:
    expected, labels = pictures(gallery.config(), 1)
    wanted = torch.stack([Corruptor("gaussian_noise", 4, 3)(pixels, n) for n, pixels in enumerate(expected)])
    assert not torch.equal(wanted, expected)
    for world, workers, size in ((1, 1, 4), (2, 0, 1), (3, 0, 7)):
        config = gallery.config(data={"workers": workers}, validation={"micro_batch": size})
        change = Corruptor("gaussian_noise", 4, 3)
        ranks = [list(validation_samples(config, rank=rank, world=world, change=change)) for rank in range(world)]
        batches = [batch for same in zip(*ranks, strict=True) for batch in same]
        pixels, found = (torch.cat(each) for each in zip(*batches, strict=True))
        assert torch.equal(found[found != NO_LABEL], labels)
        assert torch.equal(pixels[found != NO_LABEL], wanted), (world, workers, size)
        assert not pixels[found == NO_LABEL].any()
