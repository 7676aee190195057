"""How often hidden units are active over all ranks and micro-batches: whole numbers, so the same on every mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nt_pretrain.models.units import ReluUnits
from nt_pretrain.parallel.mesh import Ranks


class Activity:
    """Counts of positive activations since the last :meth:`restart`.

    Every position counts (token or pixel of a map, padding too). Of a head each rank counts the samples that it runs
    through it, which under head parallelism are those of its whole head group; of a layer cut by tensor parallelism its
    own units. So each activation is counted by one rank, and the sum over all ranks is that of the global batch.

    Args:
        units: of the whole model, also those of heads held elsewhere.

    Attributes:
        active: [all units] int64, one layer after the other: what :meth:`agree` has added up over the ranks.
        seen: [layers] int64: positions of each layer, active or not.
    """

    def __init__(self, units: list[ReluUnits]) -> None:
        self.units = units
        self.active = torch.zeros(sum(each.count for each in units), dtype=torch.int64)
        self.seen = torch.zeros(len(units), dtype=torch.int64)
        self._own: dict[str, Tensor] = {}
        self._own_seen: dict[str, int] = {}
        self._handles: list[Any] = []

    def listen(self, model: nn.Module) -> None:
        """Count in all forward passes of the units that ``model`` holds, until :meth:`stop`."""
        held = dict(model.named_modules())
        for each in self.units:
            if each.site in held:
                self._handles.append(held[each.site].register_forward_hook(self._counter(each)))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def restart(self) -> None:
        """Forget everything counted so far."""
        self.active.zero_()
        self.seen.zero_()
        self._own, self._own_seen = {}, {}

    def agree(self, ranks: Ranks) -> None:
        """Add up what the ranks have counted, so that all know all. Collective, one message."""
        units = len(self.active)
        table = torch.zeros(units + len(self.units), dtype=torch.int64)
        first = 0
        for number, each in enumerate(self.units):
            if each.site in self._own:
                own = self._own[each.site].cpu()
                start = first + ranks.place["tensor"] * len(own)
                table[start : start + len(own)] = own
                # Tensor ranks see the same positions.
                table[units + number] = self._own_seen[each.site] * ranks.counts
            first += each.count
        dist.all_reduce(table, group=ranks.control)
        self.active += table[:units]
        self.seen += table[units:]
        self._own, self._own_seen = {}, {}

    def by_layer(self) -> list[tuple[ReluUnits, Tensor, int]]:
        """Each layer's units, how often each of them was active [count], and how often it could have been."""
        parts = self.active.split([each.count for each in self.units])
        return list(zip(self.units, parts, self.seen.tolist(), strict=True))

    def _counter(self, units: ReluUnits) -> Callable[..., None]:
        def count(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> None:
            if torch._C._current_graph_task_id() != -1:
                return  # inside a backward pass: activations are only computed again, and were counted the first time
            others = [axis for axis in range(out.ndim) if axis != units.axis % out.ndim]
            positive = (out.detach() > 0).sum(dim=others, dtype=torch.int64)
            before = self._own.get(units.site)
            self._own[units.site] = positive if before is None else before.add_(positive)
            seen = out.numel() // out.shape[units.axis]
            self._own_seen[units.site] = self._own_seen.get(units.site, 0) + seen

        return count
