"""A loaded model as plain modules in one process, to call them one token at a time without gathering anything."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.shard import local


def make_plain(model: MultiHead, dtype: torch.dtype) -> None:
    """Replace the sharded weights of ``model``, in place, by whole ones of ``dtype`` that need no gradient.

    On one rank a shard is the whole weight, so nothing is copied unless its type changes. FSDP2 gathers weights when
    blocks, trunk and heads are called as such; from here on only what is inside of them may be.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor) and parameter.device_mesh.size() > 1:
                raise ValueError(f"{name} is held by {parameter.device_mesh.size()} ranks; load it on one")
            setattr(module, name, nn.Parameter(local(parameter.detach()).to(dtype), requires_grad=False))
