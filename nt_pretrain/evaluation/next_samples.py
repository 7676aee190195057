"""The training samples that a run would read next: for choices that must not be made on its validation split.

As long as the run is in its first epoch it has never trained on them; afterwards it has, in an earlier epoch, and what
is chosen on them is chosen on data the network knows. Which of the two it is is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import TrainLoader
from nt_pretrain.data.position import Position
from nt_pretrain.data.samples import NO_LABEL
from nt_pretrain.data.text import PADDING
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.together import on_all


@dataclass(frozen=True)
class NextSamples:
    """Training samples in batches; every rank brings as many, filled up with samples without labels.

    Attributes:
        batches: of this rank. Batch k of data rank r is the one numbered k * ranks + r of the whole set.
        samples: of all ranks.
        seen: whether some were trained on in an earlier epoch.
        lost: what could not be read, in words.
    """

    batches: list[Inputs]
    samples: int
    seen: bool
    lost: list[str]

    @property
    def told(self) -> str:
        """What they are, for people."""
        known = "some of them trained on in an earlier epoch" if self.seen else "never trained on"
        return f"{self.samples:,} training samples that the run would read next, {known}"


def next_samples(config: Config, state: dict[str, Any], count: int, ranks: Ranks) -> NextSamples:
    """The ``count`` training samples that follow the checkpoint whose facts are ``state``. Collective.

    The same ones on any number of ranks, in batches of ``eval.micro_batch``. Pictures are cropped as in training.

    Raises:
        CheckpointError: the checkpoint does not say where its run stood in the data.
        DataError: on all ranks; the training split cannot be read, or is not that of the checkpoint.
    """
    if "position" not in state:
        raise CheckpointError(
            "this checkpoint does not say where its run stood in the training data, so the next samples are unknown; "
            "use a checkpoint of a training run"
        )
    arrays, seen, lost = on_all(ranks, lambda: _read(config, Position.from_json(state["position"]), count))
    labelled = config.model.classifies
    size, world = config.eval.micro_batch, ranks.sizes.data
    rounds = -(-count // (size * world))
    first, second = (_filled(x, rounds * size * world - count, value) for x, value in
                     zip(arrays, (0, NO_LABEL if labelled else PADDING), strict=True))  # fmt: skip
    make = Inputs.of_labelled if labelled else Inputs.of_text
    starts = range(ranks.data_rank * size, len(first), size * world)
    batches = [make(first[start : start + size], second[start : start + size]) for start in starts]
    return NextSamples(batches, count, seen, lost)


def _read(config: Config, position: Position, count: int) -> tuple[tuple[Tensor, ...], bool, list[str]]:
    # Every rank reads all: only a number of ranks that divides the lanes could share the work, and it is little.
    data = config.data.model_copy(update={"workers": 0})
    loader = TrainLoader(config.model_copy(update={"data": data}), rank=0, world=1, position=position)
    parts: list[tuple[Tensor, ...]] = []
    lost: list[str] = []
    have, seen = 0, False
    for batch in _batches(loader):
        parts.append(batch.arrays)
        have += len(batch.arrays[0])
        lost += [fault.words for fault in batch.faults]
        seen = any(cursor.epoch for lanes in batch.position_after.cursors.values() for cursor in lanes.values())
        if have >= count:
            break
    return tuple(torch.cat(each)[:count] for each in zip(*parts, strict=True)), seen, lost


def _batches(loader: TrainLoader) -> Iterator[Any]:
    with closing(iter(loader)) as batches:
        yield from batches


def _filled(x: Tensor, missing: int, value: int) -> Tensor:
    return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)]) if missing else x
