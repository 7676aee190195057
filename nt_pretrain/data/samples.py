"""What a lane of a run yields: training sequences, pictures or rows, from every source in its turn.

The sources of a mixture keep places of their own in the lane, so that weights may change at any step without a document
being lost or repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import webdataset

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import training_picture
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import BadInput
from nt_pretrain.data.images import ImageError
from nt_pretrain.data.lane import Lane
from nt_pretrain.data.mixture import Mixture
from nt_pretrain.data.rows import DTYPE
from nt_pretrain.data.text import Cursor, packed, truncated

NO_LABEL = -100
"""Label of a picture or row that could not be read: no loss, no count."""


@dataclass(frozen=True)
class Sample:
    """One place of a batch and what comes after it in its lane of its source.

    ``arrays``: tokens and documents [T + 1] int32, pixels [H, W, 3] uint8 and label [] int64, or numbers
    [features] fp32 and label.
    """

    arrays: tuple[np.ndarray, np.ndarray]
    after: Cursor


Samples = Callable[[Cursor], Iterator[Sample]]
"""Endless samples of one lane of one source from a cursor on."""


class LaneSource(webdataset.PipelineStage):
    """Source stage of a WebDataset pipeline: the samples of one lane, from cursors on, with the cursors after each.

    WebDataset's own sources split shards among ranks and shuffle with hidden state; neither can be resumed exactly.

    Args:
        samples, cursors: one of each source.
        lane: number of the lane.
        per_step: samples of the lane in a global batch.
        first_step: step (from 1) of the first sample.
    """

    def __init__(
        self, samples: list[Samples], cursors: list[Cursor], mixture: Mixture, lane: int, per_step: int, first_step: int
    ) -> None:
        self._samples, self._cursors, self._mixture = samples, cursors, mixture
        self._lane, self._per_step, self._first_step = lane, per_step, first_step

    def run(self) -> Iterator[tuple[Sample, list[Cursor]]]:
        cursors = list(self._cursors)
        streams = [samples(cursor) for samples, cursor in zip(self._samples, cursors, strict=True)]
        for step in count(self._first_step):
            for place in range(self._lane * self._per_step, (self._lane + 1) * self._per_step):
                source = self._mixture.source(step, place)
                sample = next(streams[source])
                cursors[source] = sample.after
                yield sample, list(cursors)


def samples_of(lane: Lane, split: Split, config: Config) -> Samples:
    """The samples of a lane: sequences of text, pictures or rows, by what the split holds."""
    make = {"text": _sequences, "pictures": _pictures, "rows": _rows}[split.manifest.kind]
    return make(lane, split, config)


def _sequences(lane: Lane, split: Split, config: Config) -> Samples:
    make, length = packed if config.data.packing == "pack" else truncated, config.data.sequence_length

    def read(cursor: Cursor) -> np.ndarray:
        return lane.document(cursor, split.tokens, split.tokens_lost)

    def samples(cursor: Cursor) -> Iterator[Sample]:
        for each in make(read, lane.following, cursor, length):
            yield Sample((each.tokens, each.documents), each.after)

    return samples


def _pictures(lane: Lane, split: Split, config: Config) -> Samples:
    data, seed = config.data, config.run.seed
    nothing = np.zeros((data.picture_size, data.picture_size, 3), dtype=np.uint8), NO_LABEL

    def samples(cursor: Cursor) -> Iterator[Sample]:
        while True:
            epoch = cursor.epoch

            def read(shard: int, document: int, epoch: int = epoch) -> tuple[np.ndarray, int]:
                content, label = split.picture(shard, document)
                # Named by shard and place in it: the same crop whatever order or mixture it comes in.
                name = f"{split.manifest.shards[shard].name}/{document}"
                try:
                    picture = training_picture(
                        content, seed=seed, epoch=epoch, sample=name, size=data.picture_size,
                        area=data.picture_area, jitter=data.picture_jitter,
                    )  # fmt: skip
                except ImageError as error:
                    raise _bad_picture(split, shard, document, error) from None
                return picture.permute(1, 2, 0).numpy(), label

            pixels, label = lane.document(cursor, read, lambda error: nothing)
            cursor = lane.following(cursor)
            yield Sample((pixels, np.array(label, dtype=np.int64)), cursor)

    return samples


def _rows(lane: Lane, split: Split, config: Config) -> Samples:
    nothing = np.zeros(split.manifest.features, dtype=DTYPE), NO_LABEL

    def samples(cursor: Cursor) -> Iterator[Sample]:
        while True:
            row, label = lane.document(cursor, split.row, lambda error: nothing)
            cursor = lane.following(cursor)
            yield Sample((row, np.array(label, dtype=np.int64)), cursor)

    return samples


def _bad_picture(split: Split, shard: int, document: int, error: ImageError) -> BadInput:
    where = f"{split.location}/{split.manifest.shards[shard].name}: picture {document}"
    return BadInput(f"picture {error.kind}", f"{where}: {error}", of_document=True)
