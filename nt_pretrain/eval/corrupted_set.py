"""A validation set of pictures under one corruption: chance follows a picture's number in the set, never the rank or
the batch it came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.eval.corruptions import corrupted
from nt_pretrain.models.loss import IGNORED


@dataclass(frozen=True)
class Corruptor:
    """Corrupts pictures by their number in the set. As ``change`` of :func:`nt_pretrain.data.validation.
    validation_pictures` it does so in the processes that decode, which keeps pace with more of them.
    """

    name: str
    severity: int
    seed: int

    def __call__(self, picture: Tensor, sample: int) -> Tensor:
        """The picture, uint8 [3, H, W], corrupted."""
        return corrupted(picture, self.name, self.severity, seed=self.seed, sample=sample)


def numbered(
    batches: Iterable[tuple[Tensor, Tensor]], *, rank: int, world: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Batches (pixels, labels) of a rank with the number of their first sample: batch b of S starts at
    (b * world + rank) * S, as :func:`nt_pretrain.data.validation.validation_pictures` deals them out.
    """
    for index, (pixels, labels) in enumerate(batches):
        yield pixels, labels, (index * world + rank) * len(labels)


def corrupted_batches(
    batches: Iterable[tuple[Tensor, Tensor, int]], name: str, severity: int, *, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (pixels uint8 [S, 3, H, W], labels [S], number of the first sample) with every picture corrupted.

    For pictures that are decoded already, e.g. a small set kept in memory. Places without a label stay as they are.
    Pixels are new tensors in the memory format they came in.

    Raises:
        ValueError: there is no such corruption or severity, or pixels are no pictures.
    """
    corrupt = Corruptor(name, severity, seed)
    for pixels, labels, first in batches:
        changed = torch.clone(pixels)
        for row in (labels != IGNORED).nonzero()[:, 0].tolist():
            changed[row] = corrupt(pixels[row], first + row)
        yield changed, labels
