"""What a loaded ensemble gives each label, and the mean loss of that: the same bits on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.eval.exact import fixed_sums, mean_of
from nt_pretrain.eval.gather import said, summed_over_ranks
from nt_pretrain.eval.members import mean_probability, pieces
from nt_pretrain.eval.voices import Voices
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks


def label_scores(model: MultiHead, config: Config, batches: Iterable[Inputs], ranks: Ranks) -> Tensor:
    """Log-probabilities (fp64 [N], on the CPU) that the heads' mean gives to this rank's labels, in their order; nan
    where an output is no number. Collective.
    """
    found = [torch.empty(0, dtype=torch.float64)]
    for words in said(Voices.of(model, config), batches, ranks):
        for piece in pieces(words.logits, words.labels):
            ensemble = piece.logp[piece.heads].gather(-1, piece.labels[:, None])[:, 0]
            found.append((torch.full_like(ensemble, math.nan) if piece.broken else ensemble).cpu())
    return torch.cat(found)


def mean_loss(scores: Tensor, ranks: Ranks) -> float:
    """Mean of -``scores`` [N] over the labels of all ranks, in nats; nan where one is. Collective."""
    sums = fixed_sums(-scores)
    table = summed_over_ranks(torch.cat([sums, torch.tensor([scores.numel()])]), ranks)
    return mean_of(table[:-1], int(table[-1]))


def together(scores: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of the labels by the mean of several members' probabilities, from those of each."""
    return mean_probability(torch.stack(list(scores)))
