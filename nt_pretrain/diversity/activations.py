"""What the units of a voice say to a fixed set of probe samples, read through hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.diversity.voice import Site, Voice

CELLS = 4
"""Maps are averaged over a grid of 4 x 4 places: enough to tell where a unit speaks, small for maps of any size."""
ROWS = 1024
"""Tokens that are compared, at most, evenly spaced over all: a similarity costs the square of them."""


@dataclass(frozen=True)
class Batch:
    """Probe samples as a network takes them.

    Attributes:
        inputs: tokens [S, T], pictures [S, 3, Y, X], normalised, or features [S, W].
        documents: of tokens [S, T], else None.
        rows: int64, which tokens of the flat [S * T] are compared; None: all, or no tokens.
    """

    inputs: Tensor
    documents: Tensor | None = None
    rows: Tensor | None = None


@contextmanager
def reading(site: Site, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand what passes ``site`` to ``keep`` at every forward pass."""
    if site.before:
        handle = site.module.register_forward_pre_hook(lambda _, given: keep(given[0]))
    else:
        handle = site.module.register_forward_hook(lambda _, given, out: keep(out))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def activations(voice: Voice, sites: Sequence[Site], batches: Sequence[Batch]) -> list[Tensor]:
    """Of every site the activations [N, places, units] (fp32, on the CPU) of all probe samples, one pass for all.

    N are pictures with the places of their maps, or tokens with one place.
    """
    found: list[list[Tensor]] = [[] for _ in sites]
    for batch in batches:
        with ExitStack() as hooks:
            for site, tables in zip(sites, found, strict=True):
                hooks.enter_context(reading(site, partial(_append, tables, batch.rows)))
            voice.forward(batch.inputs, batch.documents)
    return [torch.cat(tables) for tables in found]


def table_of(x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Activations as [N, places, units]: maps [B, C, Y, X] averaged over a grid, tokens [B, T, H] of ``rows``, or
    features [B, W].
    """
    if x.ndim == 4:
        cells = (min(CELLS, x.shape[2]), min(CELLS, x.shape[3]))
        table = F.adaptive_avg_pool2d(x.float(), cells).flatten(2).transpose(1, 2)
    else:
        flat = x.reshape(-1, x.shape[-1])
        table = (flat if rows is None else flat[rows.to(flat.device)]).float()[:, None]
    return table.cpu()


def spaced(count: int, most: int = ROWS) -> Tensor:
    """At most ``most`` numbers below ``count``, evenly spaced (int64)."""
    return torch.arange(min(count, most)) * count // max(min(count, most), 1)


def _append(tables: list[Tensor], rows: Tensor | None, x: Tensor) -> None:
    tables.append(table_of(x.detach(), rows))
