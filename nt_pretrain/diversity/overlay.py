"""A map of what matters, laid over the picture it is of."""

from __future__ import annotations

import torch
from torch import Tensor

MORE, LESS = (230, 97, 1), (30, 120, 210)
"""Orange and blue, which people with any colour vision tell apart."""
DIM = 0.55


def overlay(picture: Tensor, heat: Tensor, largest: float) -> Tensor:
    """uint8 [3, Y, X]: the picture [3, Y, X] (values 0 to 1) in dim grey, coloured by ``heat`` [Y, X]: orange above 0,
    blue below, fully at ``largest``.
    """
    grey = picture.mean(0).clamp(0.0, 1.0).cpu() * DIM + 0.2
    share = (heat.cpu().float() / max(largest, 1e-30)).clamp(-1.0, 1.0)
    colour = torch.where(share[None] >= 0, _colour(MORE), _colour(LESS))
    weight = share.abs()[None]
    mixed = grey[None] * (1.0 - weight) + colour * weight
    return (mixed * 255.0).round().clamp(0, 255).to(torch.uint8)


def _colour(rgb: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rgb).view(3, 1, 1) / 255.0
