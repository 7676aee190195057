"""Pictures between 0 and 1 and the values a network takes for them."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.data.augment import DEVIATION, MEAN

GREY = 0.5


def as_network_takes(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, Y, X] of values 0 to 1, normalised; differentiable."""
    mean, deviation = (torch.tensor(each, device=pictures.device)[:, None, None] for each in (MEAN, DEVIATION))
    return (pictures - mean.to(pictures)) / deviation.to(pictures)


def as_bytes(pictures: Tensor) -> Tensor:
    """uint8 of the same shape, on the CPU, of values 0 to 1."""
    return (pictures.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu()
