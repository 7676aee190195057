"""Initial weights of networks for pictures, as pure functions of (seed, parameter name, element index).

Like :mod:`nt_pretrain.models.init`: every rank computes the elements it holds, so that all world sizes and shardings
start from the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nt_pretrain.counter_random import CHUNK, key_of, normal, uniform
from nt_pretrain.models.groups import group_of, without_member
from nt_pretrain.models.vision import VisionModel


def initial_vision_values(name: str, shape: tuple[int, ...], index: Tensor, *, seed: int, model: VisionModel) -> Tensor:
    """Initial values (fp32) of parameter ``name`` of ``shape`` at flat global element numbers ``index`` (int64).

    Convolutions are N(0, 2 / fan_out) with fan_out = n_out * k_h * k_w (He et al. 2015, arXiv 1502.01852), the
    classifier is uniform within 1 / sqrt(n_in) (torch's own, which the reference keeps), its bias 0. Gains of norms are
    1, or 0 at the end of a block with ``model.zero_last_norm``; their biases are 0.

    Args:
        shape: of the whole parameter, [n_out, n_in, k_h, k_w] of a convolution.
        index: any shape; the values have the same.
    """
    key = key_of(seed, "weights", name)
    if len(shape) == 1:
        shared = without_member(name)
        is_gain = shared.endswith("norm.weight")
        is_zero = not is_gain or (model.zero_last_norm and shared.endswith(".last_norm.weight"))
        return torch.full(index.shape, 0.0 if is_zero else 1.0, dtype=torch.float32, device=index.device)
    flat = index.reshape(-1)
    values = torch.empty(flat.shape, dtype=torch.float32, device=index.device)
    for start in range(0, flat.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        if group_of(name) == "output":
            values[part] = uniform(key, flat[part]).mul_(2.0).sub_(1.0).div_(math.sqrt(shape[1]))
        else:
            values[part] = normal(key, flat[part]).mul_(math.sqrt(2.0 / (shape[0] * math.prod(shape[2:]))))
    return values.view(index.shape)
