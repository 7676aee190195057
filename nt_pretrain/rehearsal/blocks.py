"""Layers of blocks in a rehearsal: topologies that are drawn for real, and kernels that only have shapes.

Where blocks are does not matter to what a step takes, but kernels and layouts want real indices. A rank draws the lines
that its tensor rank multiplies instead of being told them, which a pretended mesh could not do.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.blocks import block_modules, lines_group
from nt_pretrain.parallel.exchange import width
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import blocks_of
from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer
from nt_pretrain.sparsity.kernels import build


def draw(model: MultiHead, config: Config, ranks: Ranks) -> int:
    """Give the layers of blocks of ``model``, which has no storage yet, their first topology.

    Returns:
        Bytes of all tensors that say where blocks are: of the lines held here, and of those multiplied here.
    """
    budgets, size = blocks_of(config), 0
    for name, module in block_modules(model).items():
        budget, group = budgets[name], lines_group(name, ranks)
        count = budget.lines // ranks.sizes.tensor
        first = ranks.place["tensor"] * count
        whole = draw_layer(name, budget, torch.arange(first, first + count), seed=config.run.seed)
        each = -(-count // width(group))
        held = slice(dist.get_rank(group) * each, (dist.get_rank(group) + 1) * each)
        module.topology = BlockLayer(
            name, budget, whole.lines[held].clone(), whole.columns[held].clone(), whole.explored[held].clone()
        )
        module.place(whole.columns)
        assert module.layout is not None
        size += topology_bytes(module.topology) + module.layout.bytes
    return size


def topology_bytes(layer: BlockLayer) -> int:
    """Of the tensors of one layer's topology, of the lines held here."""
    held = (layer.lines, layer.columns, layer.explored, layer.starts, layer.positions)
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


@functools.cache
def give_shapes() -> None:
    """Let the compiled kernels, where there are any, run on tensors without values."""
    if build.compiled():
        torch.library.register_fake("nt_sparse::block_product", _product)
        torch.library.register_fake("nt_sparse::block_gradient", _gradient)


def _product(x: Tensor, blocks: Tensor, pointers: Tensor, index: Tensor, slots: Tensor, width: int, by: bool) -> Tensor:
    return x.new_empty(x.shape[0], width)


def _gradient(dy: Tensor, x: Tensor, rows: Tensor, columns: Tensor, block: int) -> Tensor:
    return x.new_empty(rows.shape[0], block, block, dtype=torch.float32)


def scratch_bytes(operation: str, arguments: tuple[Any, ...]) -> int:
    """What a compiled kernel takes on a CPU while it runs, beside its result: packed blocks for a product, packed
    inputs for a gradient. Some hundred kilobytes a thread are left out.
    """
    packed = {"block_product": 1, "block_gradient": 1}.get(operation)
    if packed is None:
        return 0
    tensor: Tensor = arguments[packed]
    return math.prod(tensor.shape) * tensor.element_size()
