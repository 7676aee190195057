"""Which pixels a choice hangs on, by its gradient: SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nt_pretrain.counter_random import key_of, normal

COPIES = 8
NOISE = 0.1

LogProbability = Callable[[Tensor], Tensor]
"""From pictures [B, 3, Y, X] of values 0 to 1 to the log-probability of the class that is asked about, [B]."""


def saliency(choice: LogProbability, picture: Tensor, *, seed: int) -> Tensor:
    """Absolute gradient of ``choice`` to the pixels, the largest of the colours, mean over noisy copies: [Y, X].

    Args:
        picture: [3, Y, X] of values 0 to 1. Noise of deviation 0.1 is the same for every voice.
    """
    noise = normal(key_of(seed, "saliency"), torch.arange(COPIES * picture.numel()))
    noise = noise.view(COPIES, *picture.shape).to(picture)
    copies = (picture[None] + NOISE * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(choice(copies).sum(), copies)
    return gradient.abs().amax(1).mean(0)
