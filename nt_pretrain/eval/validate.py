"""Validation on a fixed set of sequences: the same numbers on every world size and batch size (up to rounding)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from nt_pretrain.config.schema import Config
from nt_pretrain.eval.metrics import TokenSums, losses
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.exchange import gathered, summed
from nt_pretrain.parallel.forward import Inputs, run_trunk
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import own_heads, roots


@torch.no_grad()
def validate(model: MultiHead, config: Config, batches: Iterable[Inputs], ranks: Ranks) -> dict[str, float]:
    """Losses of heads and ensemble over all ranks' ``batches`` of text.

    Every rank must bring the same number of batches; targets that are IGNORED never count. The headline
    ``validation/perplexity_ensemble`` follows ``eval.ensemble``.
    """
    join, add_up = partial(gathered, dim=0, group=ranks.head_group), partial(summed, group=ranks.head_group)
    sums = TokenSums(torch.zeros(config.model.voices, dtype=torch.float64))
    authors: list[Tensor] = []
    for batch in batches:
        before = sums.table()
        _, start, context, targets = run_trunk(model, config, batch.to(ranks.device), ranks.head_group)
        logits = _said(model, config, start, context)
        sums.add(logits, targets, gather=join, add_up=add_up)
        authors.append(sums.table() - before)
    for root in roots(model):
        assert isinstance(root, FSDPModule)
        root.reshard()
    # Ranks of a head or tensor group have summed the same tokens.
    table = sums.table() * (ranks.counts and ranks.place["head"] == 0)
    dist.all_reduce(table, group=ranks.control)
    values = losses(table, config.model.voices)
    headline = "loss_ensemble" if config.eval.ensemble == "probability" else "loss_ensemble_logit"
    values["validation/perplexity_ensemble"] = math.exp(values[f"validation/{headline}"])
    if config.eval.authors_divisor:
        values["validation/perplexity_authors_divisor"] = authors_perplexity(authors, config, ranks)
    return values


def _said(model: MultiHead, config: Config, start: Tensor, context: object) -> Iterator[Tensor]:
    """Logits of one voice after the other; those of members that share a head exist together."""
    for head in own_heads(model).values():
        logits = head(start, context)
        if config.model.sharing == "none":
            yield logits
        else:
            yield from logits
        del logits


def authors_perplexity(batches: list[Tensor], config: Config, ranks: Ranks) -> float:
    """Perplexity of the mean of logits as the authors' code computes it: batch means, divided by (batches + 1).

    Too low by a factor that depends on the batch size; only for comparison with published figures.
    """
    column = config.model.voices + 1
    means = [float(batch[column] / batch[-1]) for batch in batches if batch[-1] > 0]
    mean = torch.tensor([sum(means) / (len(means) + 1)], dtype=torch.float64)
    dist.all_reduce(mean, group=ranks.control)
    return math.exp(float(mean) / ranks.world)


def unigram_loss(counts: Tensor, batches: Iterable[Inputs], ranks: Ranks) -> float:
    """Loss (nats per token) of always predicting the training frequencies ``counts`` [V], add-one smoothed.

    The level that a model reaches which has learnt nothing but how common each token is.
    """
    frequency = (counts.double() + 1.0) / (counts.double() + 1.0).sum()
    negative = -frequency.log()
    table = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        valid = batch.targets[batch.targets != IGNORED]
        table += ranks.counts * torch.tensor([float(negative[valid].sum()), float(valid.numel())], dtype=torch.float64)
    dist.all_reduce(table, group=ranks.control)
    return float(table[0] / table[1])
