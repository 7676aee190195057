"""Noise on rows of numbers at severities 1 to 5: chance follows a row's number in the set, never the rank or the batch
it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.counter_random import key_of, normal

GAUSSIAN_NOISE = "gaussian_noise"
DEVIATIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Standard deviation of what is added to every number, by severity: for rows whose features have deviation 1."""


@dataclass(frozen=True)
class RowNoise:
    """Adds N(0, deviation) to rows by their number in the set; as ``change`` of
    :func:`nt_pretrain.data.validation.validation_samples`.
    """

    name: str
    severity: int
    seed: int

    def __call__(self, row: Tensor, sample: int) -> Tensor:
        """The row, fp32 [features], with noise."""
        key = key_of(self.seed, "corruption", self.name, self.severity, sample)
        noise = normal(key, torch.arange(len(row))).mul_(DEVIATIONS[self.severity - 1])
        return (row + noise).to(row.dtype)
