"""Weights of finished models read into shards like those of a model at hand: sums of them, and trunks of them.

Sums are made element by element, in fp32 at least, so that they are the same bits however weights are sharded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nt_pretrain.checkpoint.load import Found, load_tensors
from nt_pretrain.methods.phase import Phase
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import like_parameter, local
from nt_pretrain.train.state import TrainState, fresh_state

Shards = dict[str, Tensor]
"""This rank's parts of weights, by name."""


def read_weights(found: Found, parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> Shards:
    """The weights of a checkpoint, cut like ``parameters``, which have their names. Collective.

    Raises:
        CheckpointError: they do not fit, or cannot be read.
    """
    shards = {name: torch.empty_like(local(parameter.detach())) for name, parameter in parameters.items()}
    placed = {f"model.{name}": like_parameter(shard, parameters[name]) for name, shard in shards.items()}
    load_tensors(found.path, placed, group=ranks.control)
    return shards


def summed(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The weighted sum, in fp32 at least; a share of 1 beside shares of 0 gives its tensor exactly."""
    # Products and sums apart: fused they would round otherwise at the end of a shard than amid it.
    wide = [part.to(torch.promote_types(part.dtype, torch.float32)) * share for part, share in parts]
    total = wide[0]
    for each in wide[1:]:
        total += each
    return total


def read_blend(model: nn.Module, parts: Sequence[tuple[Found, float]], ranks: Ranks) -> None:
    """Make the weights of ``model`` the weighted sum of those of checkpoints. Running statistics of batch norms are
    read where there is one checkpoint only; otherwise they are to be measured. Collective.

    Raises:
        CheckpointError: as :func:`read_weights`.
    """
    parameters = dict(model.named_parameters())
    read = [(read_weights(found, parameters, ranks), share) for found, share in parts]
    with torch.no_grad():
        for name, parameter in parameters.items():
            local(parameter).copy_(summed([(shards[name], share) for shards, share in read]))
    if len(parts) == 1:
        statistics = {f"model.{name}": buffer for name, buffer in statistics_of(model).items()}
        load_tensors(parts[0][0].path, statistics, group=ranks.control)


def blended_state(phase: Phase, parts: Sequence[tuple[Found, float]], ranks: Ranks) -> TrainState:
    """The state at the beginning of ``phase``, which starts from a :class:`~nt_pretrain.methods.curve.Blend`.
    Collective.

    Raises:
        CheckpointError: as :func:`read_weights`.
    """
    state = fresh_state(phase.config, ranks)
    read_blend(state.model, parts, ranks)
    return state


def state_on_trunks(phase: Phase, founds: Sequence[Found], ranks: Ranks) -> TrainState:
    """The state at the beginning of ``phase``: heads of its seed on the frozen trunks of checkpoints. Collective.

    Raises:
        CheckpointError: as :func:`read_weights`.
    """
    state = fresh_state(phase.config, ranks, frozen_trunk=True)
    tensors = {name: parameter.detach() for name, parameter in state.parameters.items()} | statistics_of(state.model)
    for number, found in enumerate(founds):
        prefix = "trunk." if len(founds) == 1 else f"trunk.parts.{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        load_tensors(found.path, {f"model.trunk.{name}": x for name, x in own.items()}, group=ranks.control)
    return state
