"""Initial weights as a pure function of (seed, parameter name, element index).

Every rank computes the elements it holds, so that all world sizes and shardings start from the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.counter_random import CHUNK, bits31, key_of, normal, uniform
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


def initial_factors(name: str, shape: tuple[int, ...], index: Tensor, *, seed: int, model: ModelSection) -> Tensor:
    """The same of what makes members out of shared weights (:mod:`nt_pretrain.models.sharing`).

    Rank-one factors are N(1, 0.5) or signs (``model.factor_init``). Of low-rank ones A is Xavier-uniform with
    ``model.factor_gain``, B zero, so that members start as their parent.

    Args:
        shape: of the whole parameter.
    """
    key, flat = key_of(seed, "weights", name), index.reshape(-1)
    if name.endswith("low_rank_out"):
        values = torch.zeros(flat.shape, device=index.device)
    elif name.endswith("low_rank_in"):
        bound = model.factor_gain * math.sqrt(6.0 / (model.rank + shape[1]))
        values = uniform(key, flat).mul_(2.0).sub_(1.0).mul_(bound).float()
    elif model.factor_init == "signs":
        values = 1.0 - 2.0 * (bits31(key, flat) & 1).float()
    else:
        values = normal(key, flat).mul_(0.5).add_(1.0).float()
    return values.view(index.shape)
