"""The tokens that a unit of a language model answers most to, in the text around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.diversity.activations import Batch, reading
from nt_pretrain.diversity.voice import Site, Voice

BEFORE, AFTER = 8, 3


@dataclass(frozen=True)
class Window:
    """A stretch of one probe sequence.

    Attributes:
        tokens: those the network read.
        values: the unit's activation at each.
        peak: which of them it is about.
    """

    tokens: list[int]
    values: list[float]
    peak: int


@torch.no_grad()
def unit_values(voice: Voice, site: Site, units: Sequence[int], batches: Sequence[Batch]) -> Tensor:
    """Activations of ``units`` at every token of all sequences, fp32 [S, T, K] on the CPU."""
    found: list[Tensor] = []
    at = torch.tensor(list(units))
    with reading(site, lambda x: found.append(x[..., at.to(x.device)].float().cpu())):
        for batch in batches:
            voice.forward(batch.inputs, batch.documents)
    return torch.cat(found)


def top_windows(values: Tensor, tokens: Tensor, allowed: Tensor, count: int) -> list[Window]:
    """The ``count`` sequences with the largest activation, best first, each with the window around its peak.

    Args:
        values: of one unit, [S, T].
        tokens: [S, T].
        allowed: bool [S, T], False for padding.
    """
    peaks, places = values.masked_fill(~allowed, -torch.inf).max(1)
    windows = []
    for row in peaks.argsort(descending=True, stable=True)[:count].tolist():
        if peaks[row] == -torch.inf:
            break
        place = int(places[row])
        end = min(place + AFTER + 1, int(allowed[row].nonzero()[-1]) + 1)
        stretch = slice(max(0, place - BEFORE), end)
        windows.append(Window(tokens[row, stretch].tolist(), values[row, stretch].tolist(), place - stretch.start))
    return windows
