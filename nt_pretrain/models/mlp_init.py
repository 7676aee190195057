"""Initial weights of networks for rows, as pure functions of (seed, parameter name, element index).

Like :mod:`nt_pretrain.models.init`: every rank computes the elements it holds, so that all world sizes and shardings
start from the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nt_pretrain.counter_random import CHUNK, key_of, uniform


def initial_mlp_values(name: str, shape: tuple[int, ...], index: Tensor, *, seed: int) -> Tensor:
    """Initial values (fp32) of parameter ``name`` of ``shape`` at flat global element numbers ``index`` (int64).

    Matrices are uniform within 1 / sqrt(n_in), as torch's own; biases are 0. He et al.'s wider N(0, 2 / n_in) was
    measured too: half a point less accurate on the task of ``launch/prepare.py synth``.

    Args:
        shape: of the whole parameter, [n_out, n_in] of a matrix.
        index: any shape; the values have the same.
    """
    values = torch.zeros(index.numel(), dtype=torch.float32, device=index.device)
    if len(shape) > 1:
        key, flat = key_of(seed, "weights", name), index.reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            values[part] = uniform(key, flat[part]).mul_(2.0).sub_(1.0).div_(math.sqrt(shape[1]))
    return values.view(index.shape)
