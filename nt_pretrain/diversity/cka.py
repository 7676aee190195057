"""Linear CKA: how alike two layers represent the same samples, whatever their widths and rotations.

Kornblith et al. 2019 (arXiv 1905.00414), with the unbiased estimator of HSIC (Song et al. 2012, as in Nguyen, Raghu and
Kornblith 2021, arXiv 2010.15327): the plain one comes out near 1 for any two layers with more units than samples. It is
written as the cosine of two U-centred Gram matrices (Székely and Rizzo 2014, arXiv 1310.2926), whose inner product is
n (n - 3) times that estimator.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred_gram(table: Tensor) -> Tensor:
    """U-centred Gram matrix (fp64 [N, N]) of samples: activations [N, ...] of any shape behind.

    Raises:
        ValueError: fewer than 4 samples, of which nothing can be said.
    """
    count = len(table)
    if count < 4:
        raise ValueError(f"{count} samples: a similarity of representations needs 4 at least")
    rows = table.flatten(1).double()
    rows = rows - rows.mean(0)  # changes nothing by the definition, and much of the rounding
    gram = rows @ rows.T
    gram.fill_diagonal_(0.0)
    sums = gram.sum(1) / (count - 2)
    gram -= sums[:, None] + sums[None, :]
    gram += sums.sum() / (count - 1)
    gram.fill_diagonal_(0.0)
    return gram


def cka(first: Tensor, second: Tensor) -> float:
    """CKA of two layers given by their :func:`centred_gram`: 1 for the same up to rotation and scale, about 0 for
    independent ones (it may be a little below); nan where one of them says the same of all samples.
    """
    norm = first.norm() * second.norm()
    return float((first * second).sum() / norm) if norm > 0 else float("nan")


def cka_matrix(grams: list[Tensor]) -> Tensor:
    """CKA of every pair, fp64 [V, V]."""
    return torch.tensor([[cka(a, b) for b in grams] for a in grams], dtype=torch.float64)
