"""How much the heads of a language model differ over each token, and how sure they are together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 64
"""Places worked on at once: tables of a vocabulary in fp64 are large."""


@dataclass(frozen=True)
class TokenScores:
    """Of T predicted tokens.

    Attributes:
        entropy: of the mean of the heads' probabilities, nats [T].
        disagreement: mutual information of head and token, nats [T]: that entropy less the heads' mean entropy. 0: all
            heads say the same; at most log M.
        choices: bool [T], whether the heads do not all have the same first choice.
        target: probability of the token that really came, of every head and the ensemble [M + 1, T].
        guesses: the most likely tokens [M + 1, T, k] of every head and the ensemble, best first.
        chances: their probabilities [M + 1, T, k].
    """

    entropy: Tensor
    disagreement: Tensor
    choices: Tensor
    target: Tensor
    guesses: Tensor
    chances: Tensor


@torch.no_grad()
def token_scores(logits: Tensor, targets: Tensor, *, guesses: int = 3) -> TokenScores:
    """Scores of T places from the heads' ``logits`` [M, T, V] and the tokens that came, ``targets`` [T]."""
    parts = [
        _scores(some, each, min(guesses, logits.shape[-1]))
        for some, each in zip(logits.split(PIECE, dim=1), targets.split(PIECE), strict=True)
    ]
    columns = list(zip(*parts, strict=True))
    entropy, disagreement, choices = (torch.cat(column).cpu() for column in columns[:3])
    target, best, chances = (torch.cat(column, dim=1).cpu() for column in columns[3:])
    return TokenScores(entropy, disagreement, choices, target, best, chances)


def _scores(logits: Tensor, targets: Tensor, guesses: int) -> tuple[Tensor, ...]:
    p = logits.double().softmax(-1)
    everyone = torch.cat([p, p.mean(0, keepdim=True)])
    entropies = -torch.special.xlogy(everyone, everyone).sum(-1)
    disagreement = (entropies[-1] - entropies[:-1].mean(0)).clamp_min(0.0)
    first = p.argmax(-1)
    target = everyone.gather(-1, targets.expand(len(everyone), -1)[..., None])[..., 0]
    chances, best = everyone.topk(guesses, dim=-1)
    return entropies[-1], disagreement, (first != first[0]).any(0), target, best, chances
