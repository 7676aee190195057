"""Layers of single weights on the mesh: FSDP2 cuts their slots into equal runs; all ranks know what each slot holds.

That is 8 bytes a weight that every rank has of the layers it computes with, and 16 more in the lists that products
read.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of
from nt_pretrain.models.groups import part_of
from nt_pretrain.models.network import values_of
from nt_pretrain.parallel.blocks import lines_group
from nt_pretrain.parallel.candidates import best, pool_of
from nt_pretrain.parallel.exchange import gathered, width
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.select import select_largest
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_layers import single_layers
from nt_pretrain.sparsity.csr_topology import CsrLayer, layer_of_ids, part
from nt_pretrain.sparsity.scores import code


def single_topologies(model: nn.Module) -> dict[str, CsrLayer]:
    """Of the layers of single weights held here, by the name of their parameter."""
    found = {}
    for name, module in single_layers(model).items():
        assert module.topology is not None, "no weights were drawn"
        found[name] = module.topology
    return found


def by_group(names: list[str], ranks: Ranks) -> list[tuple[list[str], dist.ProcessGroup]]:
    """``names`` of layers of the trunk and of this rank's heads, each with the ranks over which FSDP2 divides them."""
    trunk = [name for name in names if part_of(name) == "trunk"]
    heads = [name for name in names if part_of(name) != "trunk"]
    return [(some, lines_group(some[0], ranks)) for some in (trunk, heads) if some]


def draw_single(model: nn.Module, budgets: dict[str, LayerBudget], config: Config, ranks: Ranks) -> None:
    """Give every layer of single weights its first topology. Collective."""
    modules = single_layers(model)
    for names, group in by_group(list(modules), ranks):
        for name, layer in draw_layers({n: budgets[n] for n in names}, seed=config.run.seed, group=group).items():
            modules[name].topology = layer
            modules[name].place(layer.ids)


def initial_single(layer: CsrLayer, slots: Tensor, *, config: Config) -> Tensor:
    """Initial values (fp32) [n, 1] of the slots held here: those of the dense matrix at the same places."""
    ids = layer.ids[slots.to(layer.ids.device)][:, None]
    return values_of(layer.name, layer.budget.shape, ids, seed=config.run.seed, model=config.model)


def publish_single(model: nn.Module, ranks: Ranks) -> None:
    """Tell all ranks what the slots hold, of which each has read its own from a checkpoint. Collective."""
    layers = single_topologies(model)
    for names, group in by_group(list(layers), ranks):
        some = [layers[name] for name in names]
        own = [x.ids[held_slots(x, group)] for x in some]
        for layer, ids in zip(some, gathered_slots(own, [x.budget.active for x in some], group), strict=True):
            layer.ids.copy_(ids)


def held_slots(layer: CsrLayer, group: dist.ProcessGroup | None) -> slice:
    """The run of slots that this rank of ``group`` holds."""
    run = part(layer.budget.active, width(group), rank_in(group))
    return slice(run.start, run.stop)


def draw_layers(budgets: dict[str, LayerBudget], *, seed: int, group: dist.ProcessGroup | None) -> dict[str, CsrLayer]:
    """The first topologies, those of the masked backend: a function of (seed, layer name). Collective over ``group``,
    the ranks over which the layers are divided.

    Raises:
        ValueError: a layer is no matrix.
    """
    rank, ranks = rank_in(group), width(group)
    pools, numbers = [], []
    for name, budget in budgets.items():
        rows = part(budget.shape[0], ranks, rank)
        empty = torch.empty(0, dtype=torch.int64)
        grid = CsrLayer(name, budget, empty, rows, empty).grid(empty)
        codes = code(grid.random_bits(seed, "first topology"), ~grid.active)
        ties = key_of(seed, "first topology tie", name)
        positions = best(grid, codes, ties, budget.active).nonzero().view(-1)
        numbers.append(grid.unit_index(positions))
        pools.append(pool_of(name, numbers[-1], codes[positions], ties, budget.active))
    chosen = [ids[flags] for ids, flags in zip(numbers, select_largest(pools, group), strict=True)]
    return {
        name: layer_of_ids(name, budget, ids, part(budget.shape[0], ranks, rank))
        for (name, budget), ids in zip(budgets.items(), gathered_lists(chosen, group), strict=True)
    }


def gathered_lists(lists: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Each of ``lists`` (flat, of any lengths and one dtype, as many on every rank) joined over the ranks, in their
    order.
    """
    ranks = width(group)
    if ranks == 1:
        return lists
    lengths = gathered(torch.tensor([[len(each) for each in lists]], dtype=torch.int64), 0, group)
    most = int(lengths.sum(1).max())
    joined = torch.cat(lists)
    own = joined.new_zeros(most)
    own[: len(joined)] = joined
    by_rank = gathered(own, 0, group).view(ranks, most)
    pieces = [row[: int(many.sum())].split(many.tolist()) for row, many in zip(by_rank, lengths, strict=True)]
    return [torch.cat(each) for each in zip(*pieces, strict=True)]


def gathered_slots(parts: list[Tensor], counts: list[int], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Tensors of all slots from those of the slots held here (flat, of one dtype); ``counts`` are all slots of each."""
    ranks = width(group)
    if ranks == 1:
        return parts
    sizes = [-(-count // ranks) for count in counts]
    padded = [torch.nn.functional.pad(each, (0, size - len(each))) for each, size in zip(parts, sizes, strict=True)]
    by_rank = gathered(torch.cat(padded)[None], 0, group)
    return [each.reshape(-1)[:count] for each, count in zip(by_rank.split(sizes, 1), counts, strict=True)]


def rank_in(group: dist.ProcessGroup | None) -> int:
    """This rank's number in ``group``."""
    return 0 if group is None else dist.get_rank(group)
