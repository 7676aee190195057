"""A topology update of layers of which only the active blocks exist: every rank moves blocks of the lines it holds."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.blocks import publish, topologies
from nt_pretrain.parallel.collectives import exact_sums, sum_integers
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import local
from nt_pretrain.sparsity.block_topology import BlockLayer, oriented
from nt_pretrain.sparsity.block_update import BlockMove, BlockTensors, block_norms, choose_blocks, move_blocks
from nt_pretrain.sparsity.update import LayerChange
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.topology import of_all_heads, parts


def update_blocks(
    state: TrainState, scores: dict[str, Tensor], config: Config, ranks: Ranks, *, prune_rate: float, step: int
) -> dict[str, LayerChange]:
    """Drop the weakest blocks of every line and grow as many in their slots; returns what changed in all layers.

    Collective.

    Args:
        scores: layer to [L, across], norms of the blocks of the dense gradient of the lines held here; empty where
            growth is random.
        prune_rate: share of active blocks to drop, rho(t).
    """
    found: dict[str, LayerChange] = {}
    for some, group in parts(list(topologies(state.model).values()), ranks):
        tensors = {layer.name: _tensors(state, layer) for layer in some}
        moves = {layer.name: _choose(layer, tensors[layer.name], scores, config, prune_rate, step) for layer in some}
        seconds = _second_moments(some, tensors, moves, config, group, ranks)
        counts: list[int] = []
        for layer in some:
            change = move_blocks(layer, moves[layer.name], tensors[layer.name], second_moment=seconds.get(layer.name))
            counts += [change.active, change.dropped, change.grown, change.explored]
        summed = sum_integers(counts, group, ranks.device)
        for at, layer in enumerate(some):
            active, dropped, grown, explored = summed[4 * at : 4 * at + 4]
            assert active == layer.budget.active, f"{layer.name}: {active} active blocks, not {layer.budget.active}"
            found[layer.name] = LayerChange(active, dropped, grown, explored, layer.budget.units)
    publish(state.model, ranks)
    return of_all_heads(found, ranks, list(state.budgets))


def _tensors(state: TrainState, layer: BlockLayer) -> BlockTensors:
    gradient = state.parameters[layer.name].grad
    return BlockTensors(
        state.optimizer.shards[layer.name].detach(),
        state.optimizer.first_moment(layer.name),
        state.optimizer.second_moment(layer.name),
        state.average.values[layer.name] if state.average is not None else None,
        None if gradient is None else local(gradient),
    )


def _choose(
    layer: BlockLayer, tensors: BlockTensors, scores: dict[str, Tensor], config: Config, prune_rate: float, step: int
) -> BlockMove:
    score = scores.get(layer.name)
    return choose_blocks(
        layer, block_norms(tensors.values), None if score is None else oriented(score, layer.budget.balance),
        sparsity=config.sparsity, prune_rate=prune_rate, seed=config.run.seed, step=step,
    )  # fmt: skip


def _second_moments(
    layers: list[BlockLayer],
    tensors: dict[str, BlockTensors],
    moves: dict[str, BlockMove],
    config: Config,
    group: torch.distributed.ProcessGroup,
    ranks: Ranks,
) -> dict[str, float]:
    """What the second moments of slots that start again become: the mean of those that stay, over the whole layer.

    Those that start again are zeroed. Empty where they stay at zero, or the optimizer has none.
    """
    held = {layer.name: tensors[layer.name].second_moment for layer in layers}
    kept = {name: second for name, second in held.items() if second is not None}
    if config.sparsity.grown_moments != "mean" or not kept:
        return {}
    for name, second in kept.items():
        second[~moves[name].kept] = 0.0
    terms = [layer.budget.units * layer.budget.unit**2 for layer in layers]
    sums = exact_sums(list(kept.values()), terms, group)
    counts = [int(torch.count_nonzero(moves[layer.name].kept)) * layer.budget.unit**2 for layer in layers]
    totals = sum_integers(counts, group, ranks.device)
    return {layer.name: total / max(count, 1) for layer, total, count in zip(layers, sums, totals, strict=True)}
