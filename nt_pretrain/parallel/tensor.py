"""Tensor and sequence parallelism: ranks that share every matrix product of a model.

Between the layers each rank holds its part of the sequence, [B, T / t, H] of t ranks. Attention and feed-forward gather
the whole sequence, multiply by their columns (query, key, value, gate, up: rows of the stored matrix) and then by their
rows (out, down), and add up into parts of the sequence again. Embedding and output layer are cut along the vocabulary.
Norms are the same on all ranks; each sees its part of the sequence, so their gradients are added up.

Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053) and its sequence parallelism (Korthikanti et al. 2022, arXiv
2205.05198). Modules stay as they are; here they only get weights that are cut and a forward that knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from nt_pretrain.models.llama import Attention, FeedForward, ReluFeedForward, RMSNorm
from nt_pretrain.models.loss import DenseMatrix
from nt_pretrain.models.multihead import Head, Trunk
from nt_pretrain.parallel.exchange import gather, gathered, scatter_sum, sum_gradient
from nt_pretrain.parallel.vocabulary import vocabulary_cross_entropy_sum
from nt_pretrain.sparsity.layers import BlockMatrix, SparseEmbedding, SparseLinear

Linear = nn.Linear | SparseLinear
Embedding = nn.Embedding | SparseEmbedding

SEQUENCE = 1
"""Dimension of the sequence in hidden states [B, T, H]."""


def cut(root: Trunk | Head, mesh: DeviceMesh) -> None:
    """Cut the weights of a trunk or head over the 1-D ``mesh`` and teach its modules to compute with their parts."""
    group = mesh.get_group()
    for module in root.modules():
        if isinstance(module, Embedding):
            _place(module, mesh, Shard(0))
            replace_forward(module, partial(_embed, module, group))
        elif isinstance(module, RMSNorm):
            _place(module, mesh, None)
            replace_forward(module, partial(_norm, module, group))
        elif isinstance(module, Attention):
            module.heads //= mesh.size()
            module.kv_heads //= mesh.size()
            _columns_then_rows(module, [module.query, module.key, module.value], module.out, mesh)
        elif isinstance(module, FeedForward | ReluFeedForward):
            _columns_then_rows(module, module.entering, module.down, mesh)
    if isinstance(root, Head):
        _place(root.output, mesh, Shard(0))
        replace_forward(root.output, partial(_logits, root.output, group))
        # A method of this head alone, as replace_forward does for forward.
        root.loss_sum = partial(_loss_sum, root.output, group)  # type: ignore[method-assign]


def replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    """Let ``module`` compute by ``forward``, under its own name and with its own parameters."""
    module.forward = forward


def local(weight: Tensor) -> Tensor:
    """This rank's part of a weight that is cut; the gradient flows back into it."""
    assert isinstance(weight, DTensor)
    return weight.to_local()


def _place(
    module: nn.Embedding | SparseEmbedding | Linear | RMSNorm, mesh: DeviceMesh, placement: Shard | None
) -> None:
    weight = distribute_tensor(module.weight.detach(), mesh, [placement or Replicate()], src_data_rank=None)
    module.weight = nn.Parameter(weight)


def _columns_then_rows(
    module: Attention | FeedForward | ReluFeedForward, columns: Sequence[Linear], rows: Linear, mesh: DeviceMesh
) -> None:
    group = mesh.get_group()
    for linear in columns:
        _place(linear, mesh, Shard(0))
        replace_forward(linear, partial(_linear, linear))
    # Of blocks whole lines are cut, which here are block columns.
    _place(rows, mesh, Shard(0 if isinstance(rows, SparseLinear) else 1))
    replace_forward(rows, partial(_linear, rows))
    replace_forward(module, partial(_whole_sequence_inside, module.forward, group))


def _whole_sequence_inside(
    forward: Callable[..., Tensor], group: dist.ProcessGroup, x: Tensor, *more: object
) -> Tensor:
    return scatter_sum(forward(gather(x, SEQUENCE, group), *more), SEQUENCE, group)


def _linear(linear: Linear, x: Tensor) -> Tensor:
    weight = local(linear.weight)
    return linear.multiply(x, weight) if isinstance(linear, SparseLinear) else F.linear(x, weight)


def _norm(norm: RMSNorm, group: dist.ProcessGroup, x: Tensor) -> Tensor:
    weight = sum_gradient(local(norm.weight), group)
    return F.rms_norm(x, weight.shape, weight, norm.eps)


def _embed(embedding: Embedding, group: dist.ProcessGroup, tokens_BT: Tensor) -> Tensor:
    weight = local(embedding.weight)
    held = weight.shape[0] * (embedding.unit if isinstance(embedding, SparseEmbedding) else 1)
    mine = tokens_BT - dist.get_rank(group) * held
    elsewhere = (mine < 0) | (mine >= held)
    mine = mine.masked_fill(elsewhere, 0)
    rows = embedding.look_up(mine, weight) if isinstance(embedding, SparseEmbedding) else F.embedding(mine, weight)
    return scatter_sum(rows.masked_fill(elsewhere[..., None], 0.0), SEQUENCE, group)


def _logits(output: Linear, group: dist.ProcessGroup, x_BTH: Tensor) -> Tensor:
    """Whole logits [B, T, V] on every rank, for validation; no gradient."""
    assert not torch.is_grad_enabled(), "training goes through loss_sum"
    return gathered(_linear(output, gathered(x_BTH, SEQUENCE, group)), 2, group)


def _loss_sum(output: Linear, group: dist.ProcessGroup, x_BTH: Tensor, targets_BT: Tensor, chunk: int) -> Tensor:
    hidden, weight = gather(x_BTH, SEQUENCE, group), local(output.weight)
    matrix = BlockMatrix(output, weight.detach()) if isinstance(output, SparseLinear) else DenseMatrix(weight.detach())
    return vocabulary_cross_entropy_sum(
        hidden.reshape(-1, hidden.shape[-1]), weight, matrix, targets_BT.reshape(-1), chunk=chunk, group=group
    )
