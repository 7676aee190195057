"""Corruptions by noise. Pictures are fp64 [3, H, W] in [0, 1]; results may leave the range and are clipped later."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.counter_random import normal, uniform


def gaussian_noise(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """x + c n with n standard normal."""
    return x + amount[0] * normal(key, _places(x))


def shot_noise(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Poisson(c x) / c: the fewer photons c, the more noise."""
    return _poisson(x * amount[0], uniform(key, _places(x))) / amount[0]


def impulse_noise(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Salt and pepper: each value is 0 with the chance c / 2, 1 with the chance c / 2, else x."""
    u = uniform(key, _places(x))
    return torch.where(u < amount[0] / 2, 0.0, torch.where(u < amount[0], 1.0, x))


def _places(x: Tensor) -> Tensor:
    return torch.arange(x.numel(), device=x.device).view(x.shape)


def _poisson(rate: Tensor, u: Tensor) -> Tensor:
    """The smallest k whose distribution function reaches u (inversion); rates up to some hundreds."""
    term = (-rate).exp()
    reached, k = term.clone(), torch.zeros_like(rate)
    # Twelve standard deviations and some: beyond it u, a multiple of 2**-53, has no room.
    for step in range(1, int(float(rate.max()) + 12.0 * float(rate.max()) ** 0.5) + 20):
        beyond = u >= reached
        if not beyond.any():
            break
        k += beyond
        term = term * rate / step
        reached = reached + term
    return k
