"""Some training pictures, the same ones on any number of ranks: for running statistics that are measured again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import training_picture
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.images import ImageError
from nt_pretrain.data.sources import Sources

FEWEST = 2
"""Pictures of a batch: where a network ends in one pixel, one picture has no spread."""


@dataclass(frozen=True)
class PictureSample:
    """Training pictures in batches of one size.

    Attributes:
        size: pictures of every batch.
        places: split, shard and document of each picture.
    """

    config: Config
    size: int
    places: list[tuple[Split, int, int]]

    @property
    def pictures(self) -> int:
        return len(self.places)

    @property
    def batches(self) -> int:
        """Of all ranks."""
        return len(self.places) // self.size

    def read(self, *, rank: int, world: int) -> Iterator[tuple[int, Tensor]]:
        """Number and pixels [S, 3, H, W] (uint8, channels_last) of every batch of a rank, cropped as in training.

        Batch k is that of rank k modulo ``world``.

        Raises:
            DataError: a picture cannot be read.
        """
        for number in range(rank, self.batches, world):
            places = self.places[number * self.size : (number + 1) * self.size]
            pixels = torch.stack([self._picture(*place) for place in places])
            yield number, pixels.contiguous(memory_format=torch.channels_last)

    def _picture(self, split: Split, shard: int, document: int) -> Tensor:
        data, name = self.config.data, f"{split.manifest.shards[shard].name}/{document}"
        try:
            content, _ = split.picture(shard, document)
            return training_picture(
                content, seed=self.config.run.seed, epoch=0, sample=name, size=data.picture_size,
                area=data.picture_area, jitter=data.picture_jitter,
            )  # fmt: skip
        except (BadInput, ImageError) as error:
            raise DataError(f"{split.location}/{name}: {error}") from None


def picture_sample(config: Config, count: int, *, size: int) -> PictureSample:
    """``count`` training pictures, or all there are, spread evenly over the shards.

    Only whole batches of ``size``, at least two; fewer pictures than that are one batch of all of them.

    Raises:
        DataError: the training split cannot be read, or there are fewer than two pictures.
    """
    sources = Sources.of_labelled(config, "train")
    places = [
        (split, shard, document)
        for split in sources.splits
        for shard, entry in enumerate(split.manifest.shards)
        for document in range(entry.documents)
    ]
    most = min(count, len(places))
    if most < FEWEST:
        where = ", ".join(split.location for split in sources.splits)
        raise DataError(
            f"{where}: running statistics are measured on {FEWEST} pictures at least, and {most} of the "
            f"{len(places):,} there are would be used; give --norms a larger number, such as 2048, and more pictures"
        )
    size = min(max(FEWEST, size), most)
    some = most - most % size
    return PictureSample(config, size, [places[number * len(places) // some] for number in range(some)])
