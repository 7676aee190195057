"""Layers of blocks inside a residual block of a ResNet, against the same block with masked dense weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nt_pretrain.models.resnet import BlockShape, Bottleneck
from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import draw_layer
from nt_pretrain.sparsity.conv_layers import SparseConv2d, replace_convolutions, sparse_convolutions
from nt_pretrain.sparsity.kernels.conv import conv_matrix, conv_weight

UNIT = 16


def budget_of(weight: torch.Tensor, density: float = 0.3) -> BlockBudget:
    empty = BlockBudget(tuple(weight.shape), UNIT, "row", 0, 0)
    fan = max(1, round(density * empty.across))
    return BlockBudget(empty.shape, UNIT, "row", fan, fan * empty.lines * UNIT**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bottleneck_of_blocks_is_the_masked_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    masked = Bottleneck(BlockShape(32, 16, 64, 2)).to(dtype)
    sparse = copy.deepcopy(masked)
    budgets = {f"head.{n}.weight": budget_of(m.weight) for n, m in masked.named_modules() if isinstance(m, nn.Conv2d)}
    replace_convolutions(sparse, budgets, "head.")
    sparse.to(dtype)
    layers = sparse_convolutions(sparse, "head.")
    assert layers.keys() == budgets.keys() and len(layers) == 4
    weights = {f"head.{name}": parameter for name, parameter in masked.named_parameters()}
    masks = {}
    for name, layer in layers.items():
        layer.place(draw_layer(name, budgets[name], torch.arange(budgets[name].lines), seed=1).columns)
        assert layer.layout is not None and layer.layout.table().sum() == budgets[name].active
        masks[name] = conv_weight(layer.layout.mask(), layer.kernel)
        with torch.no_grad():
            weights[name].mul_(masks[name])
            layer.weight.copy_(layer.layout.from_dense(conv_matrix(weights[name])))
    x = torch.randn(3, 32, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)
    results = []
    for block in (masked, sparse):
        given = x.clone().requires_grad_()
        y = block(given)
        y.square().sum().backward()
        results.append((y, given.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3 if dtype == torch.float32 else 1e-10)
    for name, layer in layers.items():
        assert layer.layout is not None and layer.weight.grad is not None and weights[name].grad is not None
        dense = layer.layout.to_dense(layer.weight.grad)
        torch.testing.assert_close(dense, conv_matrix(weights[name].grad * masks[name]), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(16, 16, 3), "a bias"),
        (nn.Conv2d(32, 32, 3, groups=2, bias=False), "groups"),
        (nn.Conv2d(16, 16, 3, dilation=2, bias=False), "dilation"),
        (nn.Conv2d(16, 16, 3, padding="same", bias=False), "kernel, stride and padding"),
        (nn.Conv2d(16, 16, (1, 3), bias=False), "kernel, stride and padding"),
        (nn.Conv2d(16, 16, 3, padding_mode="reflect", padding=1, bias=False), "padding_mode reflect"),
    ],
)
def test_other_convolutions_are_refused(module: nn.Conv2d, words: str) -> None:
    root = nn.Sequential(module)
    with pytest.raises(ValueError, match=f"0: a convolution with .*{words}.*leave it dense"):
        replace_convolutions(root, {"0.weight": budget_of(module.weight)})


def test_layers_without_a_budget_stay() -> None:
    root = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, bias=False), nn.Linear(16, 16))
    linear = budget_of(root[2].weight)
    replace_convolutions(root, {"1.weight": budget_of(root[1].weight), "2.weight": linear})
    assert [type(module) for module in root] == [nn.Conv2d, SparseConv2d, nn.Linear]
