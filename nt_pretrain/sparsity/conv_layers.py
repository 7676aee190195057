"""Convolutions of which only the active blocks exist: b outputs × b input channels at one place of the kernel each.

As :mod:`nt_pretrain.sparsity.layers`, for networks of pictures. All convolutions are balanced by row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nt_pretrain.sparsity.block_budget import BlockBudget
from nt_pretrain.sparsity.block_topology import BlockLayer
from nt_pretrain.sparsity.kernels.conv import block_conv
from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.layers import Scoring, placed


class SparseConv2d(nn.Module):
    """[B, channels, Y, X] to [B, outputs, Y', X'], channels_last, without bias.

    ``weight`` [lines, fan, b, b] holds the active blocks of the matrix [outputs, k * k * channels].

    Attributes:
        kernel, stride, padding: the same in both directions.
        layout, topology, scoring: as :class:`nt_pretrain.sparsity.layers.SparseLinear`.
    """

    def __init__(self, budget: BlockBudget, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(budget.lines, budget.fan, budget.unit, budget.unit))
        self.across, self.unit = budget.across, budget.unit
        self.kernel, self.stride, self.padding = budget.shape[2], stride, padding
        self.layout: BlockLayout | None = None
        self.topology: BlockLayer | None = None
        self.scoring: Scoring | None = None

    def place(self, columns: Tensor) -> None:
        """Let the lines have their blocks at ``columns`` [lines, fan] (int32)."""
        self.layout = placed(self.layout, columns, self.across, self.unit)

    @torch.compiler.disable
    def forward(self, x_BCYX: Tensor) -> Tensor:
        assert self.layout is not None, "no blocks were placed"
        scoring = None if self.scoring is None else self.scoring.convolution
        return block_conv(
            x_BCYX, self.weight, self.layout, self.kernel, self.stride, self.padding, scoring=scoring
        )  # fmt: skip


def replace_convolutions(root: nn.Module, budgets: dict[str, BlockBudget], prefix: str = "") -> None:
    """Put convolutions of blocks in the place of those whose weights, by name behind ``prefix``, have a budget.

    Raises:
        ValueError: a convolution that blocks cannot do: with a bias, groups, dilation, other padding than zeros, or a
            kernel, stride or padding that differs between height and width; a budget balanced by column.
    """
    for path, module in list(root.named_modules()):
        budget = budgets.get(f"{prefix}{path}.weight")
        if budget is None or not isinstance(module, nn.Conv2d):
            continue
        _ensure_plain(f"{prefix}{path}", module, budget)
        parent, _, name = path.rpartition(".")
        assert isinstance(module.padding, tuple)
        setattr(root.get_submodule(parent), name, SparseConv2d(budget, module.stride[0], module.padding[0]))


def sparse_convolutions(root: nn.Module, prefix: str = "") -> dict[str, SparseConv2d]:
    """The convolutions of blocks of ``root`` by the name of their parameter, behind ``prefix``."""
    found = root.named_modules()
    return {f"{prefix}{path}.weight": module for path, module in found if isinstance(module, SparseConv2d)}


def _ensure_plain(name: str, module: nn.Conv2d, budget: BlockBudget) -> None:
    even = [module.kernel_size, module.stride, module.padding]
    wrong = {
        "a bias": module.bias is not None,
        "groups": module.groups > 1,
        "dilation": module.dilation != (1, 1),
        f"padding_mode {module.padding_mode}": module.padding_mode != "zeros",
        f"kernel, stride and padding {even}": any(isinstance(each, str) or each[0] != each[1] for each in even),
        "a budget balanced by column": budget.balance != "row",
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise ValueError(f"{name}: a convolution with {', '.join(found)} has no blocks here; leave it dense")
