"""Distillation: a head learns the predictions of another network, which lies beside it, instead of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.checkpoint.load import Found
from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of, uniform
from nt_pretrain.methods.curve import Distillation
from nt_pretrain.methods.settings import single
from nt_pretrain.models.loss import IGNORED, statistics_dtype
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.batch_norm import norms_of
from nt_pretrain.parallel.forward import Inputs, Start, computing, run_trunk
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import own_heads, sharded_model
from nt_pretrain.train.blend import read_blend
from nt_pretrain.train.norms import measure_norms_again
from nt_pretrain.train.step import Loss, Objective

PICTURES = 2048
"""On which running statistics of a sum of weights are measured, or all there are."""
TRIES = 32
"""Of a draw from a Beta distribution; of those with a = 0.4 three in twenty fail, so one in 10**26 fails always."""


@dataclass(frozen=True)
class Teacher:
    """A network that is not trained.

    Attributes:
        config: of its own model.
    """

    model: MultiHead
    config: Config
    distillation: Distillation
    ranks: Ranks

    def objective(self, step: int, samples: int) -> Objective:
        """Of ``step`` of the phase, in which each rank has ``samples`` samples."""
        return partial(self._objective, step, self.ranks.data_rank * samples)

    def _objective(self, step: int, before: int, batch: Inputs, first: int) -> tuple[Inputs, Loss]:
        if self.distillation.mixup:
            numbers = torch.arange(before + first, before + first + batch.samples)
            key = key_of(self.distillation.seed, "mixup", step)
            batch = mixed(batch, beta(key, numbers, self.distillation.mixup))
        with torch.no_grad(), computing(self.config, self.ranks.device):
            start = run_trunk(self.model, self.config, batch, self.ranks.head_group)
            (head,) = own_heads(self.model).values()
            logits = head(start.start, start.context)
        return batch, partial(divergence, logits)


def read_teacher(
    distillation: Distillation, parts: Sequence[tuple[Found, float]], config: Config, ranks: Ranks
) -> Teacher:
    """The teacher of a phase of ``config``, its weights and running statistics as its blend says. Collective.

    Raises:
        CheckpointError: weights do not fit, or cannot be read.
        DataError: on all ranks, if a training picture cannot be read.
    """
    own = single(config)
    model = sharded_model(own, ranks)
    model.requires_grad_(False).eval()
    read_blend(model, parts, ranks)
    if len(parts) > 1 and norms_of(model):
        measure_norms_again(model, own, ranks, PICTURES, lambda done, of: None)
    return Teacher(model, own, distillation, ranks)


def divergence(teacher: Tensor, head: Any, start: Start) -> Tensor:
    """Sum over targets of KL(teacher || head) in nats, fp32 at least; samples without a target do not count.

    Args:
        teacher: logits of the same samples, [..., classes].
    """
    counts = (start.targets != IGNORED).reshape(-1)
    found: Tensor = head(start.start, start.context)
    said, wanted = (
        F.log_softmax(x.flatten(0, -2)[counts].to(statistics_dtype(x)), dim=-1) for x in (found, teacher)
    )  # fmt: skip
    return F.kl_div(said, wanted, reduction="sum", log_target=True)


def mixed(batch: Inputs, share: Tensor) -> Inputs:
    """Each picture or row times its ``share`` [S], plus the rest of the one before it in the micro-batch; the targets
    only say that there is one.
    """
    x = batch.inputs.to(torch.promote_types(batch.inputs.dtype, torch.float32))
    share = share.to(x).view(-1, *[1] * (x.ndim - 1))
    return batch._replace(inputs=x * share + x.roll(1, 0) * (1.0 - share))


def beta(key: int, index: Tensor, a: float) -> Tensor:
    """Beta(a, a) variates (fp64) for each int64 ``index``, by rejection (Joehnk 1964): the first of many tries that
    is accepted.
    """
    tries = index[:, None] * TRIES + torch.arange(TRIES, device=index.device)
    x, y = (uniform(key_of(key, side), tries).pow(1.0 / a) for side in ("x", "y"))
    accepted = (x + y <= 1.0) & (x + y > 0.0)
    at = accepted.to(torch.int8).argmax(1, keepdim=True)
    found = (x / (x + y)).gather(1, at)[:, 0]
    return torch.where(accepted.any(1), found, torch.full_like(found, 0.5))
