"""Runs a step with the masks that an annealing has drawn, and settles what is left when it is over.

While an annealing goes on weights outside of the target are not zeroed. A step computes with those drawn; only they
have a gradient (moments and decay go on moving the others). One draw holds for all micro-batches of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nt_pretrain.methods.annealing import Annealing
from nt_pretrain.methods.phase import Phase
from nt_pretrain.parallel.shard import reshard
from nt_pretrain.sparsity.topology import SparseLayer, mask_
from nt_pretrain.train.state import TrainState

Flags = dict[str, Tensor]
"""Which weights held here exist, by layer."""


def goes_on(phase: Phase, step: int) -> bool:
    """Whether masks are drawn at ``step`` of the phase, counted from 1."""
    return phase.annealing is not None and step <= phase.annealing.steps


@contextmanager
def drawn_masks(state: TrainState, phase: Phase, step: int) -> Iterator[Flags | None]:
    """Inside, the network consists of the weights drawn for ``step``; outside, of all as they are trained.

    Yields:
        Which these are; None where no annealing goes on.
    """
    if not goes_on(phase, step):
        yield None
        return
    assert phase.annealing is not None
    flags = {layer.name: layer.elements(_drawn(phase.annealing, layer, step)) for layer in state.layers}
    with _only(state, flags):
        yield flags


def _drawn(annealing: Annealing, layer: SparseLayer, step: int) -> Tensor:
    # Of weights that the parent has, which are the explored ones.
    drawn = annealing.drawn(layer, step) & layer.explored
    # What was stripped does not come back even for a step.
    return drawn if layer.stripped is None else drawn & ~layer.stripped


@contextmanager
def target_only(state: TrainState, phase: Phase, step: int) -> Iterator[None]:
    """Inside, after ``step``, the network is what it would be were the annealing over: for validation."""
    if not goes_on(phase, step + 1) or phase.annealing is None:
        yield
        return
    reshard(state.model)
    flags = {layer.name: layer.elements(layer.active) for layer in state.layers}
    averages = {} if state.average is None else {name: state.average.values[name] for name in flags}
    before = {name: average.clone() for name, average in averages.items()}
    for name, average in averages.items():
        mask_(average, flags[name])
    with _only(state, flags):
        yield
        reshard(state.model)
    for name, average in averages.items():
        average.copy_(before[name])


def settle(state: TrainState, phase: Phase, step: int) -> None:
    """After the last ``step`` of an annealing: what lies outside of the target is gone, weights, moments, averages."""
    if phase.annealing is not None and step == phase.annealing.steps:
        keep_target(state)


def keep_target(state: TrainState) -> None:
    """Zero what lies outside of the topology: weights, moments, averages."""
    state.forget_inactive_moments()
    with torch.no_grad():
        for layer in state.layers:
            flags = layer.elements(layer.active)
            mask_(state.optimizer.shards[layer.name], flags)
            if state.average is not None:
                mask_(state.average.values[layer.name], flags)


@contextmanager
def _only(state: TrainState, flags: Flags) -> Iterator[None]:
    shards = {name: state.optimizer.shards[name] for name in flags}
    with torch.no_grad():
        before = {name: shard.clone() for name, shard in shards.items()}
        for name, shard in shards.items():
            mask_(shard, flags[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, shard in shards.items():
                shard.copy_(before[name])
