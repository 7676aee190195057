"""Feature visualisation by activation maximisation: the picture that a unit answers most to.

Erhan et al. 2009; parametrised by Fourier coefficients in decorrelated colours, with jitter (Olah, Mordvintsev and
Schubert 2017, doi 10.23915/distill.00007) and a penalty on total variation (Mahendran and Vedaldi 2015,
arXiv 1412.0035). A coefficient's step is divided by its frequency, so that high frequencies are penalised. The start
and every shift are functions of the seed: the same for every voice, so that pictures differ only where voices do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.counter_random import key_of, normal, uniform

Score = Callable[[Tensor], Tensor]
"""From pictures [K, 3, Y, X] of values 0 to 1 to what is to be large of each, [K]."""

STEPS = 64
RATE = 0.05
VARIATION = 10.0
"""Weight of the total variation (mean over neighbours), for scores that move by about 1 among real pictures."""
START = 0.05
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""A square root of the covariance of colours in natural pictures, from the library lucid (Apache 2.0): red, green and
blue of three independent colours."""


@dataclass(frozen=True)
class Maximised:
    """Pictures [K, 3, Y, X] of values 0 to 1, and the scores [K] of the noise they began as and of themselves."""

    pictures: Tensor
    before: Tensor
    after: Tensor


def maximise(
    score: Score,
    count: int,
    size: int,
    *,
    seed: int,
    steps: int = STEPS,
    grey: bool = False,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Maximised:
    """Climb from noise: ``count`` pictures of ``size`` pixels at once, each for its own score.

    Args:
        score: differentiable; picture k is judged by value k alone.
        grey: without colours, for networks that have seen none.
        progress: told the steps that are done and all.
    """
    key = key_of(seed, "maximise")
    colours = 1 if grey else 3
    coefficients = START * normal(key, torch.arange(colours * size * (size // 2 + 1) * 2))
    # The same noise for every unit: where two pictures differ, their units do.
    spectrum = coefficients.view(1, colours, size, size // 2 + 1, 2).repeat(count, 1, 1, 1, 1).to(device)
    spectrum = spectrum.float().requires_grad_()
    reach = max(1, size // 16)
    shifts = (uniform(key_of(key, "shift"), torch.arange(2 * steps)) * (2 * reach + 1)).long().view(steps, 2).tolist()
    optimizer = torch.optim.Adam([spectrum], lr=RATE)
    with torch.no_grad():
        before = score(picture_of(spectrum, size))
    for step, (down, right) in enumerate(shifts):
        picture = picture_of(spectrum, size)
        moved = F.pad(picture, (reach,) * 4, mode="reflect")[..., down : down + size, right : right + size]
        loss = -score(moved).sum() + VARIATION * total_variation(picture).sum()
        (spectrum.grad,) = torch.autograd.grad(loss, spectrum)
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    with torch.no_grad():
        picture = picture_of(spectrum, size)
        after = score(picture)
    return Maximised(picture.detach(), before.detach(), after.detach())


def picture_of(spectrum: Tensor, size: int) -> Tensor:
    """Pictures [K, 3, size, size] of values 0 to 1 from coefficients [K, 3 or (grey) 1, size, size // 2 + 1, 2]."""
    down, right = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = (down[:, None] ** 2 + right[None, :] ** 2).sqrt().clamp_min(1.0 / size).to(spectrum.device)
    waves = torch.view_as_complex(spectrum) / frequency
    colours = torch.fft.irfft2(waves, s=(size, size), norm="ortho")
    if spectrum.shape[1] == 1:
        return torch.sigmoid(colours).expand(-1, 3, -1, -1)
    mixing = torch.tensor(COLOURS, device=spectrum.device)
    mixing = mixing / mixing.norm(dim=0).max()
    return torch.sigmoid(torch.einsum("rc,kcyx->kryx", mixing, colours))


def total_variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, of each picture [K]."""
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean(dim=(1, 2, 3))
    right = (pictures[..., 1:] - pictures[..., :-1]).abs().mean(dim=(1, 2, 3))
    return down + right
