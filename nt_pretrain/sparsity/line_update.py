"""Drop and grow line by line on dense matrices with masks (``sparsity.balance: line`` of the masked backend).

The same choices as :mod:`nt_pretrain.sparsity.block_update` makes where only active blocks exist, so that each backend
checks the other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer, layer_of_table, oriented
from nt_pretrain.sparsity.block_update import choose_blocks
from nt_pretrain.sparsity.topology import SparseLayer, mask_
from nt_pretrain.sparsity.update import LayerChange, LayerTensors, changes, settle, unit_values


def draw_lines(layers: list[SparseLayer], budgets: dict[str, BlockBudget], *, seed: int) -> None:
    """Draw the first topology: of each line its number of blocks, uniformly, a function of (seed, name)."""
    for layer in layers:
        drawn = draw_layer(layer.name, budgets[layer.name], _all_lines(layer, budgets[layer.name]), seed=seed)
        layer.active.copy_(drawn.to_table().view(-1))
        layer.explored.copy_(layer.active)


def update_lines(
    layers: list[SparseLayer],
    tensors: dict[str, LayerTensors],
    *,
    sparsity: SparsitySection,
    budgets: dict[str, BlockBudget],
    prune_rate: float,
    seed: int,
    step: int,
    group: dist.ProcessGroup | None,
) -> dict[str, LayerChange]:
    """As :func:`nt_pretrain.sparsity.update.update`, with as many blocks dropped as grown in every line."""
    moving = [layer for layer in layers if layer.budget.active < layer.budget.units]
    before = {layer.name: layer.active.clone() for layer in moving}
    norms = unit_values(moving, [tensors[layer.name].weight for layer in moving], group)
    scores: list[Tensor | None] = [None] * len(moving)
    if sparsity.grow != "random":
        scores = [*unit_values(moving, [tensors[layer.name].gradient for layer in moving], group)]
    kept = []
    for layer, norm, score in zip(moving, norms, scores, strict=True):
        budget = budgets[layer.name]
        table = layer.active.view(budget.rows, budget.columns)
        blocks = layer_of_table(layer.name, budget, _all_lines(layer, budget), table)
        move = choose_blocks(
            blocks, _by_slot(blocks, norm), None if score is None else score.view(table.shape), sparsity=sparsity,
            prune_rate=prune_rate, seed=seed, step=step,
        )  # fmt: skip
        kept.append(_table_of(blocks, blocks.columns, move.kept))
        layer.active.copy_(_table_of(blocks, move.columns, torch.ones_like(move.kept)))
        layer.explored |= layer.active
    settle(moving, before, kept, tensors, sparsity, group)
    for layer, stay in zip(moving, kept, strict=True):
        # As where grown blocks did not exist in this step's backward pass: they are first trained in the next one.
        mask_(tensors[layer.name].gradient, layer.elements(stay))
    return changes(layers, before, group)


def _all_lines(layer: SparseLayer, budget: BlockBudget) -> Tensor:
    return torch.arange(budget.lines, device=layer.active.device)


def _by_slot(blocks: BlockLayer, values: Tensor) -> Tensor:
    """Values of all blocks, flat, as [lines, fan]."""
    table = values.view(blocks.budget.rows, blocks.budget.columns)
    return oriented(table, blocks.budget.balance).gather(1, blocks.columns.to(torch.int64))


def _table_of(blocks: BlockLayer, columns: Tensor, chosen: Tensor) -> Tensor:
    """Flat bool, all blocks: those at ``columns`` [lines, fan] that are ``chosen`` [lines, fan]."""
    flags = torch.zeros(blocks.budget.lines, blocks.budget.across, dtype=torch.bool, device=columns.device)
    flags.scatter_(1, columns.to(torch.int64), chosen)
    return oriented(flags, blocks.budget.balance).reshape(-1)
