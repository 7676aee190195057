"""Layers of blocks on the mesh: FSDP2 cuts them into whole lines, and each rank decides about the lines it holds.

All ranks that compute with a layer need to know where all its blocks are: 4 bytes a block, gathered when blocks move.
"""

from __future__ import annotations

import math
import socket

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.models.groups import part_of
from nt_pretrain.models.network import values_of
from nt_pretrain.parallel.exchange import gathered, width
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer
from nt_pretrain.sparsity.conv_layers import SparseConv2d, sparse_convolutions
from nt_pretrain.sparsity.csr_layers import single_layers
from nt_pretrain.sparsity.kernels import build
from nt_pretrain.sparsity.layers import SparseEmbedding, SparseLinear, sparse_layers

BlockModule = SparseLinear | SparseEmbedding | SparseConv2d


def block_modules(model: nn.Module) -> dict[str, BlockModule]:
    """The layers of blocks held here by the name of their parameter."""
    return {**sparse_layers(model), **sparse_convolutions(model)}


def topologies(model: nn.Module) -> dict[str, BlockLayer]:
    """Of the layers of blocks held here, by the name of their parameter: the lines that this rank holds."""
    found = {}
    for name, module in block_modules(model).items():
        assert module.topology is not None, "no blocks were drawn"
        found[name] = module.topology
    return found


def ensure_same_kernels(model: nn.Module, ranks: Ranks) -> None:
    """Compiled kernels and plain torch add up in other orders, so ranks must not mix them. Collective.

    Raises:
        ConfigErrors: on all ranks, where some have the compiled kernels and some have not.
    """
    if ranks.device.type != "cpu":
        return
    mine = (not block_modules(model) and not single_layers(model)) or build.compiled()
    told: list[tuple[bool, str]] = [(True, "")] * ranks.world
    dist.all_gather_object(told, (mine, socket.gethostname()), group=ranks.control)
    without = [f"{rank} ({host})" for rank, (has, host) in enumerate(told) if not has]
    if 0 < len(without) < ranks.world:
        raise ConfigErrors(
            [
                f"sparsity.backend: block: ranks {', '.join(without)} have no compiled kernels (they said why), the "
                "others have; give them what is missing, or a folder with kernels in NT_PRETRAIN_KERNELS"
            ]
        )


def lines_group(name: str, ranks: Ranks) -> dist.ProcessGroup:
    """The ranks among which FSDP2 divides the lines of layer ``name`` that this rank's tensor group multiplies."""
    mesh = ranks.trunk_mesh if part_of(name) == "trunk" else ranks.heads_mesh
    return mesh["shard"].get_group()


def draw_blocks(
    model: nn.Module, budgets: dict[str, BlockBudget], lines: dict[str, Tensor], config: Config, ranks: Ranks
) -> None:
    """Give every layer of blocks its first topology: of ``lines`` [L] (int64), those held here. Collective."""
    for name, module in block_modules(model).items():
        module.topology = draw_layer(name, budgets[name], lines[name], seed=config.run.seed)
    publish(model, ranks)


def publish(model: nn.Module, ranks: Ranks) -> None:
    """Tell all ranks that compute with a layer where its blocks are now. Collective."""
    for name, module in block_modules(model).items():
        assert module.topology is not None
        module.place(_of_all(module.topology.columns, module.weight.shape[0], lines_group(name, ranks), ranks))


def _of_all(columns: Tensor, lines: int, group: dist.ProcessGroup, ranks: Ranks) -> Tensor:
    """``columns`` [L, fan] of all ranks of ``group`` in one table; FSDP2 gives the last ranks fewer lines."""
    each = -(-(lines // ranks.sizes.tensor) // width(group))
    padded = columns.new_zeros(each, columns.shape[1])
    padded[: len(columns)] = columns
    return gathered(padded, 0, group)[: lines // ranks.sizes.tensor]


def initial_blocks(layer: BlockLayer, *, config: Config) -> Tensor:
    """Initial values (fp32) [L, fan, b, b] of the lines held here: those of the dense matrix at the same places."""
    budget = layer.budget
    unit, channels, places = budget.unit, budget.shape[1], math.prod(budget.shape[2:])
    ids = layer.ids()[..., None, None]
    inside = torch.arange(unit, device=ids.device)
    # Inside a block lie [outputs, inputs], or the other way round where the transpose is kept.
    rows, columns = (inside[:, None], inside) if budget.balance == "row" else (inside, inside[:, None])
    rows, columns = ids // budget.columns * unit + rows, ids % budget.columns * unit + columns
    # A convolution's matrix has one place of the kernel after another, its weight all places of a channel together.
    index = (rows * channels + columns % channels) * places + columns // channels
    return values_of(layer.name, budget.shape, index, seed=config.run.seed, model=config.model)
