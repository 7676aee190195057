"""The exact k largest of scores that lie on many ranks, for all layers at once, by radix selection.

Each rank counts its scores by their leading bits; one all-reduce adds the counts of all layers; the bin in which the k-th
largest lies is opened and counted by its next bits, and so on. Ties in all 31 score bits are opened by a number that is
distinct for every unit, so counts are exact even when all scores are equal. Only integers are added, hence the result
does not depend on the number of ranks, the sharding or the order of a reduction. Nothing but counts travels: 8 KB a layer
and pass, at most six passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.counter_random import CHUNK

_BINS = 2048
_SCORE_DIGITS = ((20, 0x7FF), (10, 0x3FF), (0, 0x3FF))
_TIE_DIGITS = ((21, 0x7FF), (10, 0x7FF), (0, 0x3FF))


@dataclass(frozen=True)
class Pool:
    """The candidates of one layer on this rank.

    Attributes:
        name: layer, for messages.
        bits: [n] int32, scores that sort as integers; -1 is no candidate.
        tie_breaker: positions [m] int64 to distinct numbers below 2**32 [m] int64, a function of the global unit.
        wanted: how many to select over all ranks.
    """

    name: str
    bits: Tensor
    tie_breaker: Callable[[Tensor], Tensor]
    wanted: int


class _Search:
    """How far the selection of one layer has come."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.chosen = torch.zeros(pool.bits.numel(), dtype=torch.bool, device=pool.bits.device)
        self.open: Tensor | None = None  # positions still undecided; None: all of them, before the first pass
        self.wanted = pool.wanted
        self.done = False
        self.ties: Tensor | None = None

    def digits(self, level: int) -> Tensor:
        """Digit of each undecided candidate at ``level``."""
        assert self.open is not None
        if level < len(_SCORE_DIGITS):
            shift, mask = _SCORE_DIGITS[level]
            return (self.pool.bits[self.open] >> shift) & mask
        if self.ties is None:
            self.ties = self.pool.tie_breaker(self.open)
        shift, mask = _TIE_DIGITS[level - len(_SCORE_DIGITS)]
        return (self.ties >> shift) & mask

    def histogram(self, level: int) -> Tensor:
        """[2048] int64 counts of the undecided candidates by digit."""
        if self.done:
            return torch.zeros(_BINS, dtype=torch.int64, device=self.pool.bits.device)
        if self.open is not None:
            return torch.bincount(self.digits(level), minlength=_BINS)
        counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=self.pool.bits.device)
        for part in self.pool.bits.split(CHUNK):
            # -1 >> 20 is -1: bin 0 after the shift by one collects what is no candidate.
            counts += torch.bincount((part >> 20) + 1, minlength=_BINS + 1)
        return counts[1:]

    def narrow(self, level: int, counts: Tensor) -> None:
        """Take the bins above the one that holds the last wanted candidate, keep that one open."""
        if self.done:
            return
        total = int(counts.sum())
        if total < self.wanted:
            raise ValueError(f"{self.pool.name}: {self.wanted} units wanted, but only {total} candidates")
        if self.wanted == 0:
            self.done = True
            return
        from_top = counts.flip(0).cumsum(0).flip(0)
        boundary = int((from_top >= self.wanted).sum()) - 1
        above = int(from_top[boundary + 1]) if boundary + 1 < _BINS else 0
        whole = int(from_top[boundary]) == self.wanted
        if self.open is None:
            digit = self.pool.bits >> 20
            torch.ge(digit, boundary if whole else boundary + 1, out=self.chosen)
            undecided = digit.eq_(boundary).nonzero().view(-1) if not whole else None
        else:
            digit = self.digits(level)
            self.chosen[self.open[digit >= boundary if whole else digit > boundary]] = True
            keep = digit == boundary
            undecided = self.open[keep] if not whole else None
            self.ties = self.ties[keep] if self.ties is not None else None
        self.open, self.wanted, self.done = undecided, self.wanted - above, whole


def select_largest(pools: list[Pool], group: dist.ProcessGroup | None) -> list[Tensor]:
    """For each pool, which of its candidates belong to the ``wanted`` largest over all ranks of ``group``.

    Args:
        pools: the same layers in the same order on every rank; each rank brings the candidates it holds.
        group: ranks that hold disjoint parts; None when each rank holds all candidates.

    Returns:
        For each pool a bool tensor [n]; over all ranks exactly ``wanted`` are True.

    Raises:
        ValueError: a layer has fewer candidates than wanted.
    """
    searches = [_Search(pool) for pool in pools]
    for level in range(len(_SCORE_DIGITS) + len(_TIE_DIGITS)):
        if all(search.done for search in searches):
            break
        counts = torch.stack([search.histogram(level) for search in searches])
        if group is not None and dist.get_world_size(group) > 1:
            counts = counts.to(torch.int32)
            dist.all_reduce(counts, group=group)
        for search, row in zip(searches, counts.cpu().to(torch.int64), strict=True):
            search.narrow(level, row)
    assert all(search.done for search in searches), "tie breakers are not distinct"
    return [search.chosen for search in searches]
