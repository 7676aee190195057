"""Corruptions of light and colour. Pictures are fp64 [3, H, W] in [0, 1]; results are clipped later."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.counter_random import uniform


def brightness(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """V + c, clipped to [0, 1], in the HSV of the picture: with V = max(r, g, b), every channel times (V + c) / V.

    Black becomes grey of the value c.
    """
    value = x.amax(0, keepdim=True)
    raised = (value + amount[0]).clamp(max=1.0)
    return torch.where(value > 0, x * raised / value, raised.expand_as(x))


def saturation(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """a S + b, clipped to [0, 1], in the HSV of the picture: hue and V stay. With S = (V - min) / V each channel
    becomes V - (V - x) S' / S; a grey pixel has no hue and stays (in
    ImageNet-C's code its hue is red, and b > 0 paints it).
    """
    value = x.amax(0, keepdim=True)
    spread = value - x.amin(0, keepdim=True)
    old = spread / value
    new = (old * amount[0] + amount[1]).clamp(0.0, 1.0)
    return torch.where(spread > 0, value - (value - x) * new / old, x)


def contrast(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """(x - m) c + m with the mean m of each channel."""
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * amount[0] + mean


def fog(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """(x + a f) M / (M + a) with M = max x and a field f in [0, 1] of plasma, made by the diamond-square algorithm
    (Fournier, Fussell and Carpenter, 1982) with steps of noise that fall by the factor b at each halving.
    """
    strength, fall = amount
    height, width = x.shape[1:]
    field = _plasma(max(height, width), fall, key).to(x)[:height, :width]
    largest = x.max()
    return (x + strength * field) * largest / (largest + strength)


def _plasma(side: int, fall: float, key: int) -> Tensor:
    """Fractal field in [0, 1] on a torus of the power of two that holds ``side``: fp64 [size, size]."""
    size = 1 << max((side - 1).bit_length(), 1)
    field = torch.zeros(size, size, dtype=torch.float64)
    noise = uniform(key, torch.arange(size * size)).view(size, size) * 2.0 - 1.0
    step, amplitude = size, 1.0
    while step > 1:
        half = step // 2
        corners = field[::step, ::step]
        across = corners + corners.roll(-1, 0)
        centre = (across + across.roll(-1, 1)) / 4.0 + amplitude * noise[half::step, half::step]
        field[half::step, half::step] = centre
        upright = corners + corners.roll(-1, 0) + centre + centre.roll(1, 1)
        field[half::step, ::step] = upright / 4.0 + amplitude * noise[half::step, ::step]
        level = corners + corners.roll(-1, 1) + centre + centre.roll(1, 0)
        field[::step, half::step] = level / 4.0 + amplitude * noise[::step, half::step]
        step, amplitude = half, amplitude / fall
    field -= field.min()
    return field / field.max().clamp_min(1e-12)
