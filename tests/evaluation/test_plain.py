"""A model made plain computes what it did, with single weights in the order that kernels read."""

from __future__ import annotations

import torch
from torch import nn

from nt_pretrain.evaluation.plain import make_plain
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_layers import CsrLinear


def test_single_weights_in_order() -> None:
    layer = CsrLinear(LayerBudget((20, 30), 1, 600, 120))
    layer.place(torch.randperm(600, generator=torch.Generator().manual_seed(0))[:120])
    nn.init.normal_(layer.weight)
    model, x = nn.Sequential(layer), torch.randn(3, 30)
    before = model(x).detach()
    make_plain(model, torch.float32)
    assert layer.layout is not None and layer.layout.indices().forward.in_order
    assert torch.allclose(model(x), before, atol=1e-5)
    assert not layer.weight.requires_grad
    make_plain(model, torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
