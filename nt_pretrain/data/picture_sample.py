"""Some training pictures, the same ones on any number of ranks: for running statistics that are measured again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import training_picture
from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.images import ImageError
from nt_pretrain.data.sources import Sources


def picture_sample(config: Config, count: int, *, size: int, rank: int, world: int) -> Iterator[tuple[int, Tensor]]:
    """``count`` training pictures, or all there are, spread evenly over the shards and cropped as in training.

    Batch number k, of ``size`` pictures (the last may have fewer), is that of rank k modulo ``world``.

    Yields:
        Number and pixels [S, 3, H, W] (uint8, channels_last) of each batch of this rank.

    Raises:
        DataError: one cannot be read.
    """
    sources, data = Sources.of_pictures(config, "train"), config.data
    places = [
        (split, shard, document)
        for split in sources.splits
        for shard, entry in enumerate(split.manifest.shards)
        for document in range(entry.documents)
    ]
    count = min(count, len(places))
    chosen = [places[number * len(places) // count] for number in range(count)]
    for number in range(rank, -(-count // size), world):
        pictures = []
        for split, shard, document in chosen[number * size : (number + 1) * size]:
            name = f"{split.manifest.shards[shard].name}/{document}"
            try:
                content, _ = split.picture(shard, document)
                pictures.append(
                    training_picture(
                        content, seed=config.run.seed, epoch=0, sample=name, size=data.picture_size,
                        area=data.picture_area, jitter=data.picture_jitter,
                    )
                )  # fmt: skip
            except (BadInput, ImageError) as error:
                raise DataError(f"{split.location}/{name}: {error}") from None
        yield number, torch.stack(pictures).contiguous(memory_format=torch.channels_last)
