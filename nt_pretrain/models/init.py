"""Initial weights as a pure function of (seed, parameter name, element index).

Every rank computes the elements it holds, so that all world sizes and shardings start from the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.counter_random import CHUNK, key_of, normal
from nt_pretrain.models.groups import group_of


def initial_values(name: str, index: Tensor, *, seed: int, model: ModelSection) -> Tensor:
    """Initial values (fp32) of parameter ``name`` at flat global element numbers ``index`` (int64, any shape).

    Norms start at one, matrices as N(0, init_std), embeddings as N(0, embedding_init_std).
    """
    group = group_of(name)
    if group == "norm":
        return torch.ones(index.shape, dtype=torch.float32, device=index.device)
    std = model.embedding_init_std if group == "embedding" else model.init_std
    key = key_of(seed, "weights", name)
    flat = index.reshape(-1)
    values = torch.empty(flat.shape, dtype=torch.float32, device=index.device)
    for start in range(0, flat.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        values[part] = normal(key, flat[part]).mul_(std)
    return values.view(index.shape)
