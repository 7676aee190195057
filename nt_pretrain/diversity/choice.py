"""Which units are drawn: the same numbers in all voices, by chance, of those that are not silent in any."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.counter_random import distinct32, key_of


def chosen_units(tables: list[Tensor], count: int, *key: object) -> list[int]:
    """At most ``count`` numbers of units, ascending, from activations [N, places, n] of every voice.

    A function of ``key`` and of which units are silent: those that say the same of all samples come only where others
    are lacking. Layers of different width are taken as wide as the narrowest.
    """
    units = min(table.shape[-1] for table in tables)
    speaks = torch.stack([_changes(table[..., :units]) for table in tables]).all(0)
    order = distinct32(key_of("units", *key), torch.arange(units)) + (~speaks).long() * (1 << 32)
    return sorted(order.argsort()[:count].tolist())


def _changes(table: Tensor) -> Tensor:
    flat = table.flatten(0, 1)
    return flat.amax(0) > flat.amin(0)
