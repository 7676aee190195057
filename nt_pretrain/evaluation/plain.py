"""A loaded model as plain modules in one process, to call them one token at a time without gathering anything."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from nt_pretrain.parallel.shard import local
from nt_pretrain.sparsity.csr_layers import CsrLinear


@torch.no_grad()
def make_plain(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the sharded weights of ``model``, in place, by whole ones of ``dtype`` that need no gradient.

    On one rank a shard is the whole weight, so nothing is copied unless its type changes. FSDP2 gathers weights when
    blocks, trunk and heads are called as such; from here on only what is inside of them may be. Single weights are put
    in the order in which kernels read them.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor) and parameter.device_mesh.size() > 1:
                raise ValueError(f"{name} is held by {parameter.device_mesh.size()} ranks; load it on one")
            setattr(module, name, nn.Parameter(local(parameter.detach()).to(dtype), requires_grad=False))
        if isinstance(module, CsrLinear) and module.layout is not None:
            ids, order = module.layout.ids.sort()
            module.weight.copy_(module.weight[order])
            module.topology = None  # of the order before
            module.place(ids)
