"""Weights lost at inference: a random share of every matrix is zero for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from nt_pretrain.counter_random import CHUNK, key_of, uniform
from nt_pretrain.parallel.shard import held_part, local

SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)
"""Share of weights dropped at severities 1 to 5."""


@contextmanager
def weight_dropout(model: nn.Module, share: float, seed: int) -> Iterator[None]:
    """Inside, each weight of every matrix, convolution and embedding is zero with the chance ``share``.

    Weight i of a parameter is dropped where u_i < share, u_i uniform in [0, 1) by (seed, parameter's name, i): the same
    weights for every sharding, and those of a smaller share with them. Inactive weights are zero already, so of the
    active ones the same share is hit. What is left is not scaled up, since nothing was trained for the loss. Norms and
    biases stay. Afterwards, also after an error, all values are back bit for bit. Needs memory for one byte a weight
    and the values dropped. Works on plain models and on FSDP2's, of which each rank changes its own shards.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share {share} of dropped weights must lie between 0 and 1")
    _drop_gathered(model)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    weight = local(parameter).detach()
                    hit = dropped(name, parameter, share, seed)
                    kept.append((weight, hit, weight[hit]))
                    weight[hit] = 0.0
        yield
    finally:
        # What a forward pass gathered was made of the weights without those dropped.
        _drop_gathered(model)
        with torch.no_grad():
            for weight, hit, values in kept:
                weight[hit] = values


def dropped(name: str, parameter: Tensor, share: float, seed: int) -> Tensor:
    """Which of the weights held here are dropped: bool in the shape of the local part."""
    held, part = held_part(parameter), local(parameter)
    key = key_of(seed, "weight dropout", name)
    hit = torch.empty(part.numel(), dtype=torch.bool, device=held.rows.device)
    for start in range(0, hit.numel(), CHUNK):
        positions = torch.arange(start, min(start + CHUNK, hit.numel()), device=hit.device)
        hit[start : start + CHUNK] = uniform(key, held.flat_index(positions)) < share
    return hit.view(part.shape).to(part.device)


def _drop_gathered(model: nn.Module) -> None:
    """Free the whole parameters that FSDP2 may hold beside its shards, so that shards are what counts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
