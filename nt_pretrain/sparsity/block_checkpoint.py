"""Layers of blocks in a form that any mesh can read: by global block number, in order within each line.

A record holds whole lines of a layer. Values are [outputs, inputs] inside a block whatever the balance, so records of
both balances and the masked backend's dense matrices are one another's transcription. Slots are kept too: kernels add
up in their order, and a run that resumes shall add up as it did before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer, ensure_constant, oriented
from nt_pretrain.sparsity.kernels.conv import conv_matrix, conv_weight


@dataclass(frozen=True)
class BlockRecord:
    """Some or all lines of a layer.

    Attributes:
        ids: [L, fan] int64, global block numbers, ascending in each line.
        slots: [L, fan] int32, the slot of each of these blocks in memory.
        explored: [L, across] uint8, 1 for blocks that were ever active.
        tensors: name (values, moments, average) to [L, fan, b, b], in the order of ``ids``, [outputs, inputs] inside.
    """

    ids: Tensor
    slots: Tensor
    explored: Tensor
    tensors: dict[str, Tensor]


def record_of(layer: BlockLayer, tensors: dict[str, Tensor]) -> BlockRecord:
    """The record of the lines that this rank holds. Tensors are copied, not shared."""
    slots = torch.argsort(layer.columns, dim=1, stable=True)
    flipped = layer.budget.balance == "col"
    placed = {}
    for name, tensor in tensors.items():
        ordered = tensor[torch.arange(slots.shape[0], device=slots.device)[:, None], slots]
        placed[name] = ordered.transpose(-1, -2).contiguous() if flipped else ordered
    return BlockRecord(
        layer.ids().gather(1, slots), slots.to(torch.int32), layer.explored.view(torch.uint8).clone(), placed
    )


def layer_of_records(
    name: str, budget: BlockBudget, lines: Tensor, records: list[BlockRecord]
) -> tuple[BlockLayer, dict[str, Tensor]]:
    """The lines held here with their tensors, from ``records`` of any mesh; what they hold beside is left alone.

    Args:
        lines: [L] int64, the lines held here.

    Raises:
        ValueError: a line is in no record or in several; a record has another number of blocks in a line, or blocks
            that are not of one line; records have not the same tensors.
    """
    if not records:
        raise ValueError(f"{name}: no record to read blocks from")
    for record in records:
        _ensure_whole(name, budget, record)
    kinds = [sorted(record.tensors) for record in records]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{name}: records hold different tensors: {', '.join(map(str, kinds))}")
    ids = torch.cat([record.ids for record in records])
    found = _lines_of(budget, ids)[:, 0]
    at = _where(name, budget, found, lines)
    slots = torch.cat([record.slots for record in records])[at].to(torch.int64)
    across = ids[at] % budget.columns if budget.balance == "row" else ids[at] // budget.columns
    # Slots say where the sorted blocks lay; scatter puts them there.
    columns = torch.empty_like(across).scatter_(1, slots, across).to(torch.int32)
    explored = torch.cat([record.explored for record in records])[at].to(torch.bool)
    layer = BlockLayer(name, budget, lines, columns, explored)
    here = torch.arange(at.numel(), device=at.device)[:, None]
    tensors = {}
    for kind in records[0].tensors:
        ordered = torch.cat([record.tensors[kind] for record in records])[at]
        if budget.balance == "col":
            ordered = ordered.transpose(-1, -2)
        tensors[kind] = torch.empty_like(ordered, memory_format=torch.contiguous_format)
        tensors[kind][here, slots] = ordered
    return layer, tensors


def record_of_masked(
    name: str, budget: BlockBudget, active: Tensor, explored: Tensor, tensors: dict[str, Tensor]
) -> BlockRecord:
    """The record of all lines of a layer of the masked backend; slots ascend by column.

    Args:
        active, explored: flat, all blocks, bool or uint8, as :class:`nt_pretrain.sparsity.topology.SparseLayer` has
            them.
        tensors: name to dense weight of ``budget.shape``.

    Raises:
        ValueError: lines have not all ``budget.fan`` active blocks; a tensor has another shape, or values outside of
            the active blocks, which blocks could not keep.
    """
    table, seen = (
        oriented(flags.view(budget.rows, budget.columns).to(torch.bool), budget.balance) for flags in (active, explored)
    )
    lines = torch.arange(budget.lines, device=table.device)
    ensure_constant(name, table, lines, budget)
    columns = torch.nonzero(table)[:, 1].view(budget.lines, budget.fan)
    rows_across = (lines[:, None], columns) if budget.balance == "row" else (columns, lines[:, None])
    placed = {}
    for kind, tensor in tensors.items():
        blocks = _blocks(name, kind, tensor, budget)
        placed[kind] = blocks[rows_across]
        outside = int(torch.count_nonzero(tensor)) - int(torch.count_nonzero(placed[kind]))
        if outside:
            raise ValueError(
                f"{name}: {outside:,} numbers of {kind} outside of the active blocks are not zero, and blocks cannot "
                "keep them (moments of a run with sparsity.grown_moments: warm are such). Load it with the masked "
                "backend"
            )
    ids = rows_across[0] * budget.columns + rows_across[1]
    slots = torch.arange(budget.fan, dtype=torch.int32, device=table.device).expand(budget.lines, -1).contiguous()
    return BlockRecord(ids, slots, seen.to(torch.uint8).contiguous(), placed)


def masked_of_records(
    name: str, budget: BlockBudget, records: list[BlockRecord]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the masked backend has of a layer: active and explored (flat, bool, all blocks) and dense matrices.

    Raises:
        ValueError: as :func:`layer_of_records`; all lines are needed.
    """
    lines = torch.arange(budget.lines, device=records[0].ids.device if records else None)
    layer, tensors = layer_of_records(name, budget, lines, records)
    ids = layer.ids()
    dense = {}
    for kind, values in tensors.items():
        inside = values if budget.balance == "row" else values.transpose(-1, -2)
        blocks = values.new_zeros(budget.rows, budget.columns, budget.unit, budget.unit)
        blocks[ids // budget.columns, ids % budget.columns] = inside
        matrix = blocks.transpose(1, 2).reshape(budget.shape[0], -1)
        dense[kind] = conv_weight(matrix, budget.shape[2]).contiguous() if len(budget.shape) > 2 else matrix
    return layer.to_table().view(-1), oriented(layer.explored, budget.balance).reshape(-1), dense


def _blocks(name: str, kind: str, tensor: Tensor, budget: BlockBudget) -> Tensor:
    """A dense weight as [rows, columns, b, b]."""
    if tuple(tensor.shape) != budget.shape:
        raise ValueError(f"{name}: {kind} has shape {list(tensor.shape)}, {list(budget.shape)} expected")
    return conv_matrix(tensor).reshape(budget.rows, budget.unit, budget.columns, budget.unit).transpose(1, 2)


def _lines_of(budget: BlockBudget, ids: Tensor) -> Tensor:
    return ids // budget.columns if budget.balance == "row" else ids % budget.columns


def _ensure_whole(name: str, budget: BlockBudget, record: BlockRecord) -> None:
    if record.ids.shape[1] != budget.fan:
        raise ValueError(
            f"{name}: the record has {record.ids.shape[1]} active blocks in each line, and the run {budget.fan}; "
            "density, unit or scope of the configuration differ from those of the checkpoint"
        )
    lines = _lines_of(budget, record.ids)
    spread = torch.nonzero((lines != lines[:, :1]).any(dim=1)).view(-1)
    if spread.numel():
        first = record.ids[int(spread[0])].tolist()
        word = "row" if budget.balance == "row" else "column"
        raise ValueError(
            f"{name}: blocks {first[:4]} of the record lie in different block {word}s; it was written with the other "
            f"balance. Read it as that, and write it as masked"
        )


def _where(name: str, budget: BlockBudget, found: Tensor, lines: Tensor) -> Tensor:
    """[L] int64: at which of the lines ``found`` each of ``lines`` stands."""
    counts = torch.bincount(found, minlength=budget.lines)
    wrong = lines[counts[lines] != 1]
    if wrong.numel():
        line = int(wrong[0])
        raise ValueError(
            f"{name}: {wrong.numel():,} of {lines.numel():,} lines are not once in the records; the first is line "
            f"{line}, which is there {int(counts[line])} times"
        )
    places = torch.empty(budget.lines, dtype=torch.int64, device=found.device)
    places[found] = torch.arange(found.numel(), device=found.device)
    return places[lines]
