"""Which part of a picture a choice hangs on, by covering it (Zeiler and Fergus 2014, arXiv 1311.2901)."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.diversity.pictures import GREY
from nt_pretrain.diversity.saliency import LogProbability

PART = 4
"""The patch is a quarter of the picture's side, and moves by half of itself."""
BATCH = 64


@torch.no_grad()
def occlusion(choice: LogProbability, picture: Tensor) -> Tensor:
    """What ``choice`` loses (nats) where a grey patch covers the place, mean over the patches that do: [Y, X]."""
    _, height, width = picture.shape
    patch = max(1, min(height, width) // PART)
    corners = [(top, left) for top in _starts(height, patch) for left in _starts(width, patch)]
    covered = picture[None].repeat(len(corners), 1, 1, 1)
    for each, (top, left) in zip(covered, corners, strict=True):
        each[:, top : top + patch, left : left + patch] = GREY
    whole = choice(picture[None])
    lost = whole - torch.cat([choice(part) for part in covered.split(BATCH)])
    total, times = picture.new_zeros(height, width), picture.new_zeros(height, width)
    for (top, left), each in zip(corners, lost.to(total), strict=True):
        total[top : top + patch, left : left + patch] += each
        times[top : top + patch, left : left + patch] += 1
    return total / times


def _starts(side: int, patch: int) -> list[int]:
    """Where patches begin, so that they cover the side to its end."""
    step = max(1, patch // 2)
    return sorted({*range(0, side - patch + 1, step), side - patch})
