"""Logits and labels for tests of measures, ordinary and nasty."""

from __future__ import annotations

import torch
from torch import Tensor


def made(samples: int, classes: int, heads: int = 3, *, seed: int = 5, sure: float = 2.0) -> tuple[Tensor, Tensor]:
    """Heads that are right now and then, fp32 [M, N, C], and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    common = torch.randn(samples, classes, generator=generator)
    common[torch.arange(samples), labels] += 1.0
    return (common + torch.randn(heads, samples, classes, generator=generator)) * sure, labels


def nasty() -> dict[str, tuple[Tensor, Tensor]]:
    """Ties, certainty, impossibility, one class, huge logits, labels to ignore."""
    logits, labels = made(60, 7)
    certain = torch.full((3, 60, 7), -torch.inf)
    certain[:, :, 2] = 0.0
    ignored = labels.clone()
    ignored[::3] = -100
    return {
        "ties": (logits.round(), labels),
        "all equal": (torch.zeros(3, 60, 7), labels),
        "probability 0 and 1": (certain, torch.full((60,), 2)),
        "huge": (logits * 1e4, labels),
        "one class": (logits[..., :1], torch.zeros(60, dtype=torch.int64)),
        "two classes": (logits[..., :2], labels % 2),
        "ignored labels": (logits, ignored),
    }
