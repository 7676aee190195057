"""Corruptions by blur: convolutions with a kernel that sums to 1, edges mirrored. Pictures are fp64 [3, H, W]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nt_pretrain.counter_random import uniform

SIDE = 224
"""Shorter side, in pixels, that radii and standard deviations are meant for."""
SAMPLES = 8
"""Points on a side of a pixel by which the share of it in a disk is measured."""


def gaussian_blur(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Kernel exp(-(i^2 + j^2) / (2 s^2)) up to 4 s, s in pixels of a picture of 224."""
    s = amount[0] * scale(x)
    places = torch.arange(-math.ceil(4 * s), math.ceil(4 * s) + 1, dtype=torch.float64)
    line = (-places.square() / (2 * s * s)).exp()
    return convolved(convolved(x, line[None, :]), line[:, None])


def defocus_blur(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Kernel of a disk of radius r: each pixel weighs the share of it that lies in the disk (on an 8 x 8 grid).

    A disk of half a pixel or less, in a very small picture, changes nothing.
    """
    r = max(amount[0] * scale(x), 0.5)
    size = math.ceil(r)
    fine = (torch.arange((2 * size + 1) * SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES - size - 0.5
    inside = (fine[:, None].square() + fine[None].square() <= r * r).double()
    return convolved(x, inside.view(2 * size + 1, SAMPLES, 2 * size + 1, SAMPLES).sum((1, 3)))


def motion_blur(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Kernel of a line of 2 r pixels through the middle, weighted exp(-t^2 / (2 s^2)) by the distance t from it.

    The angle is random, between -45 and 45 degrees; weights go to the four pixels around each point of the line,
    bilinearly. (ImageNet-C's line starts at the middle.)
    """
    r, s = (each * scale(x) for each in amount)
    angle = (float(uniform(key, torch.zeros(1, dtype=torch.int64))) - 0.5) * math.pi / 2
    size = math.ceil(r) + 1
    t = torch.linspace(-r, r, 4 * size + 1, dtype=torch.float64)
    weight = (-t.square() / (2 * s * s)).exp()
    kernel = torch.zeros(2 * size + 1, 2 * size + 1, dtype=torch.float64)
    row, column = size + t * math.sin(angle), size + t * math.cos(angle)
    top, left = row.floor(), column.floor()
    for down, along in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1.0 - (row - top - down).abs()) * (1.0 - (column - left - along).abs())
        kernel.index_put_(((top + down).long(), (left + along).long()), weight * share, accumulate=True)
    return convolved(x, kernel)


def scale(x: Tensor) -> float:
    """Pixels of this picture for a pixel of one of 224."""
    return min(x.shape[1:]) / SIDE


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with the kernel (odd sides) over its sum; beyond an edge the picture is its mirror."""
    kernel = (kernel / kernel.sum()).to(x)
    rows, columns = (_mirrored(length, size // 2) for length, size in zip(x.shape[1:], kernel.shape, strict=True))
    padded = x[:, rows.to(x.device)][:, :, columns.to(x.device)]
    height, width = x.shape[1:]
    out = torch.zeros_like(x)
    # One addition for each weight that is not 0: torch's fp64 convolution took up to 190 times as long on a CPU.
    for row, column in kernel.nonzero().tolist():
        out.add_(padded[:, row : row + height, column : column + width], alpha=float(kernel[row, column]))
    return out


def _mirrored(length: int, margin: int) -> Tensor:
    """Index of each place from -margin to length + margin - 1 in a picture that is mirrored at its edges for ever."""
    places = torch.arange(-margin, length + margin) % (2 * length)
    return torch.minimum(places, 2 * length - 1 - places)
