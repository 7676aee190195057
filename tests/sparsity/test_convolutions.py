"""Sparse convolutions: exact budgets, and topologies of 4-D weights that do not depend on the sharding.

A convolution's weight [n_out, n_in, k_h, k_w] goes through the machinery of matrices as [n_out, n_in * k_h * k_w],
contiguous; only its budget knows the kernel.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.models.resnet import BasicBlock, BlockShape, Stem
from nt_pretrain.models.vision import VisionModel
from nt_pretrain.models.vision_accounting import vision_shapes
from nt_pretrain.models.vision_init import initial_vision_values
from nt_pretrain.parallel.shard import held_part, local
from nt_pretrain.sparsity.block_budget import plan_block_budgets
from nt_pretrain.sparsity.budget import LayerBudget, names_without_blocks, plan_budgets
from nt_pretrain.sparsity.kernels.conv import conv_matrix
from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.topology import SparseLayer, empty_layer, mask_
from nt_pretrain.sparsity.update import LayerTensors, draw, layer_digests, update
from tests.gloo import run_ranks

R50 = VisionModel("resnet50", heads=3, blocks_in_head=10)
WIDE = VisionModel("wide_resnet28_10", 100, heads=3, blocks_in_head=8, output_bias=True)
SECTION = SparsitySection(density=0.3)


@pytest.mark.parametrize(
    ("model", "density", "layers", "dense", "active", "densities"),
    [
        (
            R50, 0.3, 120, 20, 22_258_848,
            {
                "trunk.stem.conv": 1, "trunk.blocks.0.conv1x1_last": 1, "trunk.blocks.0.downsample.conv": 1,
                "heads.0.blocks.0.conv1x1_first": 1, "heads.0.blocks.0.conv1x1_last": 1,
                "trunk.blocks.1.conv3x3": 0.589,
                "trunk.blocks.4.conv3x3": 0.288, "heads.1.blocks.2.conv3x3": 0.142, "heads.1.blocks.9.conv3x3": 0.071,
                "heads.1.blocks.2.conv1x1_first": 0.79, "heads.1.blocks.9.conv1x1_first": 0.40, "heads.2.output": 0.241,
            },
        ),
        (
            R50, 0.2, 120, 19, 14_839_232,
            {
                "trunk.stem.conv": 0.912, "trunk.blocks.1.conv3x3": 0.385, "trunk.blocks.4.conv3x3": 0.188,
                "heads.1.blocks.2.conv3x3": 0.093, "heads.1.blocks.9.conv3x3": 0.046, "heads.2.output": 0.158,
            },
        ),
        (
            WIDE, 0.2, 67, 12, 21_255_766,
            {
                "trunk.stem.conv": 1, "trunk.blocks.0.conv3x3_first": 1, "heads.0.blocks.0.downsample": 1,
                "heads.1.output": 1, "trunk.blocks.1.conv3x3_first": 0.608, "heads.0.blocks.2.conv3x3_first": 0.301,
                "heads.0.blocks.7.conv3x3_first": 0.150,
            },
        ),
    ],
)  # fmt: skip
def test_erk_of_the_papers_networks(model, density, layers, dense, active, densities) -> None:
    shapes = vision_shapes(model)
    budgets = plan_budgets(shapes, SparsitySection(density=density))
    assert len(budgets) == layers, "convolutions and classifiers, never norms or biases"
    assert sum(budget.active == budget.units for budget in budgets.values()) == dense
    # Each layer is rounded to a whole number of weights.
    assert abs(sum(budget.active for budget in budgets.values()) - active) <= layers / 2
    for name, expected in densities.items():
        digits = 2 if expected in (0.79, 0.40) else 3
        assert budgets[f"{name}.weight"].density == pytest.approx(expected, abs=0.51 * 10**-digits), name


def test_the_kernel_counts() -> None:
    """Density ratios are those of (n_out + n_in + k_h + k_w) / (n_out n_in k_h k_w)."""
    budgets = plan_budgets(vision_shapes(R50), SparsitySection(density=0.05))
    wide, narrow = budgets["heads.0.blocks.9.conv3x3.weight"], budgets["heads.0.blocks.9.conv1x1_first.weight"]
    ratio = ((512 + 512 + 6) / (512 * 512 * 9)) / ((512 + 2048 + 2) / (512 * 2048))
    assert wide.density / narrow.density == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("plan", [plan_budgets, plan_block_budgets])
def test_blocks_of_convolutions_and_what_they_do_not_fit(plan) -> None:
    """Stems and classifiers stay dense and count for no density; blocks are those of [n_out, k * k * n_in]."""
    shapes, section = vision_shapes(R50), SparsitySection(density=0.2, unit=64)
    budgets = plan(shapes, section)
    without = {"trunk.stem.conv.weight", *(f"heads.{head}.output.weight" for head in range(3))}
    assert set(names_without_blocks(shapes, section.scope, section.unit)) == without
    assert names_without_blocks(shapes, section.scope, 1) == []
    assert set(budgets) == set(plan_budgets(shapes, SparsitySection(density=0.2))) - without
    assert budgets["trunk.blocks.1.conv3x3.weight"].units == 9
    wide = budgets["heads.0.blocks.9.conv3x3.weight"]
    assert (wide.shape, wide.units) == ((512, 512, 3, 3), 8 * 9 * 8)
    total = sum(math.prod(budget.shape) for budget in budgets.values())
    assert sum(budget.active * 64**2 for budget in budgets.values()) == pytest.approx(0.2 * total, rel=0.02)
    # WideResNet's first convolutions have 16 channels.
    names = names_without_blocks(vision_shapes(WIDE), "all", 32)
    assert names[:2] == ["trunk.stem.conv.weight", "trunk.blocks.0.conv3x3_first.weight"] and len(names) == 6
    with pytest.raises(ValueError, match=r"no convolution has channels .* blocks of 128"):
        plan_budgets(vision_shapes(VisionModel("resnet20")), SparsitySection(density=0.3, unit=128))


def test_scopes_of_a_network_for_pictures() -> None:
    shapes = vision_shapes(R50)
    heads = plan_budgets(shapes, SparsitySection(density=0.3, scope="heads"))
    assert heads and all(name.startswith("heads.") for name in heads)
    classifiers = {f"heads.{head}.output.weight" for head in range(3)}
    assert plan_budgets(shapes, SparsitySection(density=0.3)).keys() - classifiers == set(
        plan_budgets(shapes, SparsitySection(density=0.3, scope="no_vocab"))
    )


class Tiny(nn.Module):
    """A network of four convolutions: the real parts at a width that takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(10, is_small=True)
        self.blocks = nn.ModuleList([BasicBlock(BlockShape(10, 10, 14, 2))])

    def forward(self, pictures_BCYX: Tensor) -> Tensor:
        return self.blocks[0](self.stem(pictures_BCYX))


def sparse_run(model: Tiny, updates: int, group: dist.ProcessGroup | None, share: slice, sharded: bool) -> dict:
    """First topology and ``updates`` updates of ``model`` from real gradients; digests and counts of what came out."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            held = held_part(parameter)
            index = held.rows[:, None] * held.total_columns + held.columns[None, :]
            values = initial_vision_values(name, tuple(parameter.shape), index, seed=0, model=VisionModel())
            local(parameter).copy_(values.view(local(parameter).shape))
    budgets: dict[str, LayerBudget] = plan_budgets({n: tuple(p.shape) for n, p in parameters.items()}, SECTION)
    layers: list[SparseLayer] = [empty_layer(name, b, held_part(parameters[name])) for name, b in budgets.items()]
    draw(layers, seed=5, group=group)
    digests = [layer_digests(layers, group)]
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randn(4, 3, 8, 8, generator=generator)
    changes = {}
    for step in range(updates):
        for layer in layers:
            mask_(local(parameters[layer.name]).detach(), layer.active)
        # Norms as in evaluation: their batch would depend on the number of ranks.
        model.eval()
        model.zero_grad()
        model(pictures[share]).square().sum().backward()
        tensors = {}
        for layer in layers:
            weight, gradient = (local(each).detach() for each in (parameters[layer.name], parameters[layer.name].grad))
            # Coarse gradients: rounding of sums over ranks must not decide between units, ties are broken by number.
            gradient = (gradient * (64 if sharded else 32)).round()
            tensors[layer.name] = LayerTensors(weight, gradient, torch.zeros_like(weight), torch.zeros_like(weight))
        changes = update(
            layers, tensors, sparsity=SECTION, targets=budgets, prune_rate=0.3, seed=5, step=step, group=group
        )
        digests.append(layer_digests(layers, group))
    for layer in layers:
        assert not local(parameters[layer.name]).view(-1)[~layer.active].any()
        assert changes[layer.name].active == budgets[layer.name].active
    return {"digests": digests, "dropped": sum(change.dropped for change in changes.values())}


def on_ranks(rank: int, world_size: int) -> dict:
    torch.manual_seed(rank)
    mesh = init_device_mesh("cpu", (world_size,))
    model = Tiny()
    fully_shard(model.blocks[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    return sparse_run(model, 2, dist.group.WORLD, share, sharded=True)


def test_topologies_of_convolutions_are_the_same_on_one_rank_and_two() -> None:
    alone = sparse_run(Tiny(), 2, None, slice(0, 4), sharded=False)
    first, second = run_ranks(on_ranks, 2)
    assert first == second
    assert alone["dropped"] > 0 and alone["digests"][0] != alone["digests"][1]
    assert first["digests"][0] == alone["digests"][0], "the first topology"
    assert first == alone


def test_an_update_takes_exactly_the_right_weights_of_a_convolution() -> None:
    name, shape = "trunk.blocks.0.conv3x3_first.weight", (24, 16, 3, 3)
    section = SparsitySection(density=0.4, just_dropped="exclude")
    budget = plan_budgets({name: shape}, section)[name]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = empty_layer(name, budget, held_part(weight))
    draw([layer], seed=0, group=None)
    mask_(weight, layer.active)
    before, old = layer.active.view(shape).clone(), weight.clone()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tensors = LayerTensors(weight, gradient, torch.zeros(shape), torch.zeros(shape))
    update(
        [layer], {name: tensors}, sparsity=section, targets={name: budget}, prune_rate=0.3, seed=0, step=1, group=None
    )
    after = layer.active.view(shape)
    dropped, grown = before & ~after, after & ~before
    assert int(dropped.sum()) == int(grown.sum()) == math.ceil(0.3 * budget.active)
    assert old[dropped].abs().max() <= old[before & after].abs().min()
    assert gradient[grown].abs().min() >= gradient[~before & ~after].abs().max()
    assert not weight[~after].any() and torch.equal(weight[before & after], old[before & after])


def test_an_update_takes_exactly_the_right_blocks_of_a_convolution() -> None:
    """Blocks of the masked backend are those of the layers that hold blocks only: outputs x channels at one place."""
    name, shape, unit = "trunk.blocks.0.conv3x3_first.weight", (32, 48, 3, 3), 16
    section = SparsitySection(density=0.4, unit=unit)
    budget = plan_budgets({name: shape}, section)[name]
    assert (budget.units, budget.active) == (2 * 27, 22)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layer = empty_layer(name, budget, held_part(weight))
    draw([layer], seed=0, group=None)
    layout = BlockLayout(32, 9 * 48, unit, torch.zeros(2, 1, dtype=torch.int32))

    def blocks(values: Tensor) -> Tensor:
        """[block rows, block columns, b, b] of the matrix that convolutions of blocks are of."""
        return conv_matrix(values).reshape(layout.block_rows, unit, layout.block_columns, unit).transpose(1, 2)

    before = layer.active.view(2, 27).clone()
    assert torch.equal(blocks(layer.elements(layer.active).view(shape)), before[..., None, None].expand(2, 27, 16, 16))
    mask_(weight, layer.elements(layer.active))
    norms, scores = blocks(weight).flatten(2).norm(dim=2), blocks(gradient).flatten(2).norm(dim=2)
    tensors = LayerTensors(weight, gradient, torch.zeros(shape), torch.zeros(shape))
    update(
        [layer], {name: tensors}, sparsity=section, targets={name: budget}, prune_rate=0.3, seed=0, step=1, group=None
    )
    after = layer.active.view(2, 27)
    kept = torch.zeros(54, dtype=torch.bool).scatter_(0, norms.view(-1).topk(22 - 7).indices, True).view(2, 27)
    grown = torch.where(kept, -1.0, scores).view(-1).topk(7).indices
    assert torch.equal(after, kept.view(-1).scatter(0, grown, True).view(2, 27))
    assert torch.equal(blocks(weight).flatten(2).norm(dim=2) > 0, after & before)
