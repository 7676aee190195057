"""Sums from which the loss of each head and of the ensemble follow, exactly, in whatever pieces tokens arrive.

All values are sums over tokens in float64, so ranks and batches are combined by addition: no mean of means, nothing
that depends on the batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.models.loss import IGNORED


@dataclass
class TokenSums:
    """Sums over the targets seen so far.

    ``heads`` [M], ``probability`` and ``logit`` are negative log-likelihoods in nats of each head, of the mean of
    probabilities and of the mean of logits (renormalised); ``disagreements`` counts (pair of heads, token) whose most
    likely tokens differ; ``targets`` counts tokens.
    """

    heads: Tensor
    probability: float = 0.0
    logit: float = 0.0
    disagreements: float = 0.0
    targets: float = 0.0

    def add(self, logits: list[Tensor], targets: Tensor) -> None:
        """Add the tokens of one batch: for each head logits [..., V]; targets [...] with IGNORED where none is."""
        valid = targets.reshape(-1) != IGNORED
        column = targets.reshape(-1)[valid][:, None]
        if not len(column):
            return
        total: Tensor | None = None
        at_target, choices = [], []
        for head, head_logits in enumerate(logits):
            flat = head_logits.reshape(-1, head_logits.shape[-1])[valid].float()
            logp = torch.log_softmax(flat, dim=-1).gather(1, column)[:, 0].double()
            self.heads[head] -= logp.sum().cpu()
            at_target.append(logp)
            choices.append(flat.argmax(-1))
            total = flat if total is None else total.add_(flat)
        assert total is not None
        count = len(logits)
        stacked = torch.stack(at_target)
        self.probability -= float((stacked.logsumexp(0) - math.log(count)).sum())
        self.logit -= float(torch.log_softmax(total / count, dim=-1).gather(1, column).double().sum())
        for first in range(count):
            for second in range(first):
                self.disagreements += float((choices[first] != choices[second]).sum())
        self.targets += len(column)

    def table(self) -> Tensor:
        """All sums as one float64 vector, to be added over ranks."""
        rest = torch.tensor([self.probability, self.logit, self.disagreements, self.targets], dtype=torch.float64)
        return torch.cat([self.heads, rest])


def losses(table: Tensor, heads: int) -> dict[str, float]:
    """Mean losses (nats per token), perplexities and pairwise disagreement from a summed :meth:`TokenSums.table`."""
    targets = float(table[-1])
    per_head = [float(table[head]) / targets for head in range(heads)]
    probability, logit = float(table[heads]) / targets, float(table[heads + 1]) / targets
    values = {f"validation/loss_head_{head}": loss for head, loss in enumerate(per_head)}
    values |= {f"validation/perplexity_head_{head}": math.exp(loss) for head, loss in enumerate(per_head)}
    values["validation/loss_mean_head"] = sum(per_head) / heads
    values["validation/loss_ensemble"] = probability
    values["validation/loss_ensemble_logit"] = logit
    values["validation/targets"] = targets
    if heads > 1:
        values["validation/disagreement"] = float(table[heads + 2]) / (targets * heads * (heads - 1) / 2)
    return values
