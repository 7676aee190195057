"""What heads and ensembles say of a few samples: the one place where logits become probabilities.

A member is anything that predicts: each head, the ensemble by the mean of probabilities, the ensemble by the mean of
logits. Each has log-scores; divided by a temperature and normalised they are its log-probabilities.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.eval.exact import row_sum
from nt_pretrain.models.loss import IGNORED

CHUNK = 1 << 22
"""Logits (of all heads) turned to fp64 at once: temporaries stay at some hundreds of MB for any vocabulary."""


GRID = 2.0**-30
"""Log-scores of an ensemble that are so close count as equal where classes are ranked."""


@dataclass(frozen=True)
class Predictions:
    """A few samples with labels: M heads, P = M + 2 members, N samples, C classes; all floats fp64.

    ``logits`` [M, N, C] as the heads gave them; ``scores``, ``logp`` and ``p`` [P, N, C] of the members; ``ranked``
    [P, N, C] orders their classes; ``labels`` [N]; ``broken`` counts samples with a logit that is nan or +inf, or whose
    heads leave no class possible to all: their logits are 0 here and no mean that counts them may be reported. A logit
    of -inf is a probability of exactly 0.
    """

    logits: Tensor
    scores: Tensor
    logp: Tensor
    p: Tensor
    ranked: Tensor
    labels: Tensor
    broken: int

    @property
    def heads(self) -> int:
        return self.logits.shape[0]


def head_names(heads: int) -> tuple[str, ...]:
    """Names of the heads of a model that speaks alone."""
    return tuple(f"head_{head}" for head in range(heads))


def member_names(heads: Sequence[str]) -> list[str]:
    """Names of the members in their order: the heads', ``ensemble`` (mean of probabilities), ``ensemble_logit``."""
    return [*heads, "ensemble", "ensemble_logit"]


def label_of(name: str) -> str:
    """A member's name for people: ``head 1``; ``twin, head 1`` of a member of an ensemble with several heads."""
    if name in ("ensemble", "ensemble_logit", "mean_head"):
        return name.replace("_", " ")
    spoken = re.sub(r"\.(head|pass)_(\d+)", r", \1 \2", name)
    return re.sub(r"^(head|pass)_(\d+)", r"\1 \2", spoken)


def pieces(logits: Tensor, labels: Tensor, temperatures: Tensor | None = None) -> Iterator[Predictions]:
    """Predictions of the samples that have a label, some rows at a time.

    Args:
        logits: [M, ..., C], any float dtype, never changed.
        labels: [...], IGNORED where none is.
        temperatures: [M + 2], of each member; 1 without.

    Raises:
        ValueError: shapes do not fit, or a label is no class.
    """
    if logits.shape[1:-1] != labels.shape or not len(logits):
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} do not fit: "
            "logits are [heads, ..., classes] and labels have the shape between"
        )
    classes = logits.shape[-1]
    logits, labels = logits.reshape(len(logits), -1, classes), labels.reshape(-1)
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"label {int(labels[first])} of sample {first} of the batch is no class: the logits have {classes} classes "
            f"(0 to {classes - 1}), and {IGNORED} marks a sample without label"
        )
    rows = max(CHUNK // (len(logits) * classes), 1)
    for logits_part, labels_part in zip(logits.split(rows, dim=1), labels.split(rows), strict=True):
        valid = labels_part != IGNORED
        if valid.any():
            yield predictions(logits_part[:, valid], labels_part[valid], temperatures)


def predictions(logits: Tensor, labels: Tensor, temperatures: Tensor | None = None) -> Predictions:
    """Predictions of samples [M, N, C] that all have a label [N]."""
    logits = logits.double()
    broken = (logits.isnan() | (logits == math.inf)).any(-1).any(0) | (_add_up(logits) == -math.inf).all(-1)
    count = int(broken.sum())
    if count:
        logits = logits.masked_fill(broken[None, :, None], 0.0)
    scores = member_scores(logits)
    # One head is its own ensemble, and chooses as it does.
    ranked = torch.cat([logits, on_grid(scores[len(logits) :])]) if len(logits) > 1 else logits.expand(3, -1, -1)
    if temperatures is not None:
        scores = scores / temperatures.to(scores)[:, None, None]
    logp, p = normalised(scores)
    return Predictions(logits, scores, logp, p, ranked, labels, count)


def member_scores(logits: Tensor) -> Tensor:
    """Log-scores of the members, fp64 [M, N, C] to [M + 2, N, C]: logits, log of mean probability, mean logit."""
    logp, _ = normalised(logits)
    return torch.cat([logits, mean_probability(logp)[None], (_add_up(logits) / len(logits))[None]])


def mean_probability(logp: Tensor) -> Tensor:
    """Log of the mean over the first dimension of probabilities given by their logs: [M, ...] to [...]."""
    largest = logp.amax(0).clamp_min(-1e300)  # all -inf: -inf less -inf is no number
    return largest + (_add_up((logp - largest).exp()) / len(logp)).log()


def on_grid(scores: Tensor) -> Tensor:
    """Log-scores of an ensemble as its choices are made on: multiples of :data:`GRID`.

    The sum over heads depends on their order in the last bits. Classes that tie by the definition would be told apart
    by rounding, differently for every order.
    """
    return (scores / GRID).round_()


def normalised(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities of log-scores [..., C]."""
    shifted = scores - scores.amax(-1, keepdim=True)
    exponential = shifted.exp()
    total = row_sum(exponential)[..., None]
    return shifted - total.log(), exponential / total


def _add_up(x: Tensor) -> Tensor:
    """Sum over the first dimension in its order."""
    total = x[0].clone()
    for each in x[1:]:
        total += each
    return total
