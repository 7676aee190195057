"""Which token comes next: a function of the logits, the seed and the token's place, so that a text can be had again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.counter_random import key_of, uniform


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: probabilities are raised to 1 / temperature; 0: always the most likely token.
        top_p: only of the most likely tokens that have this share of the probability together (nucleus sampling,
            Holtzman et al. 2020, arXiv 1904.09751).
        seed: another one draws other tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def pooled(logits_MV: Tensor) -> Tensor:
    """The ensemble's probabilities [V] (fp64): the mean of those of the heads."""
    return torch.softmax(logits_MV.double(), dim=-1).mean(0)


def draw(probabilities_V: Tensor, sampling: Sampling, place: int) -> int:
    """The token at ``place`` of the text, counted from 0."""
    p = probabilities_V.double().cpu()
    if sampling.temperature == 0:
        return int(p.argmax())
    # Relative to the largest, so that no power of it is 0.
    p = (p / p.max()) ** (1 / sampling.temperature)
    order = p.argsort(descending=True, stable=True)
    upto = p[order].cumsum(0)
    upto = upto[: 1 + int(torch.searchsorted(upto, sampling.top_p * upto[-1]))]
    chance = uniform(key_of(sampling.seed, "generate"), torch.tensor([place]))
    at = int(torch.searchsorted(upto, chance * upto[-1], right=True))
    return int(order[min(at, len(upto) - 1)])
