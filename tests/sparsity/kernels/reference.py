"""The dense masked product in float64, and how far a result in another precision may be from it."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2.0**-8}
"""Of the sum of the absolute values of the products: 2^-8 is one rounding to bfloat16, 1e-5 some hundred of float32."""


def near(found: Tensor, left: Tensor, right: Tensor, kept: Tensor | None = None) -> bool:
    """Whether ``found`` is left · right, at each element within the tolerance of its precision (where ``kept``)."""
    left, right = left.detach().double(), right.detach().double()
    error = (found.detach().double() - left @ right).abs()
    allowed = TOLERANCE[found.dtype] * (left.abs() @ right.abs()) + 1e-30
    good = error <= allowed
    return bool(good.all() if kept is None else good[kept].all())


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
