"""The k largest of each line: every line is decided on its own, so no rank that holds whole lines asks another."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_in_lines(name: str, codes: Tensor, ties: Tensor, wanted: Tensor) -> Tensor:
    """Which candidates belong to the ``wanted`` largest of their line.

    The order is that of :func:`nt_pretrain.parallel.select.select_largest`: by code, equal codes by tie breaker, larger
    first.

    Args:
        name: layer, for messages.
        codes: [L, n] int32, scores that sort as integers; 0 is no candidate (:mod:`nt_pretrain.sparsity.scores`).
        ties: [L, n] int64, numbers below 2**32 that are distinct within a line.
        wanted: [L] int64.

    Returns:
        [L, n] bool with exactly ``wanted`` True in each line.

    Raises:
        ValueError: a line has fewer candidates than wanted.
    """
    candidates = torch.count_nonzero(codes, dim=1)
    short = torch.nonzero(candidates < wanted).view(-1)
    if short.numel():
        line = int(short[0])
        raise ValueError(
            f"{name}: {int(wanted[line])} blocks wanted in line {line} of those held here, but only "
            f"{int(candidates[line])} candidates"
        )
    # 31 bits of code above 32 of tie breaker: all keys of a line differ, so any sort gives the same order.
    order = torch.argsort((codes.to(torch.int64) << 32) | ties, dim=1, descending=True)
    taken = torch.arange(codes.shape[1], device=codes.device) < wanted[:, None]
    return torch.zeros_like(taken).scatter_(1, order, taken)


def shares(total: int, places: Tensor, lines: int) -> Tensor:
    """[L] int64: how many of ``total`` the lines at ``places`` [L] (int64) of an order of all ``lines`` get.

    They are dealt as evenly as whole numbers allow: over all lines their sum is ``total``, and they differ by one at
    most.
    """
    return (places + 1) * total // lines - places * total // lines


def mixed_places(numbers: Tensor, held: Tensor) -> Tensor:
    """The places (int64) of the lines ``held`` when all lines are ordered by their distinct random ``numbers``."""
    places = torch.empty_like(numbers)
    places[torch.argsort(numbers)] = torch.arange(numbers.numel(), device=numbers.device)
    return places[held]
