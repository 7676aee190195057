"""A validation set of pictures under one corruption: chance follows a picture's number in the set, never the rank or
the batch it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nt_pretrain.eval.corruptions import corrupted


@dataclass(frozen=True)
class Corruptor:
    """Corrupts pictures by their number in the set. As ``change`` of :func:`nt_pretrain.data.validation.
    validation_samples` it does so in the processes that decode, which keeps pace with more of them.
    """

    name: str
    severity: int
    seed: int

    def __call__(self, picture: Tensor, sample: int) -> Tensor:
        """The picture, uint8 [3, H, W], corrupted."""
        return corrupted(picture, self.name, self.severity, seed=self.seed, sample=sample)
