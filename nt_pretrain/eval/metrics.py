"""Sums from which the loss of each head and of the ensemble follow, exactly, in whatever pieces tokens arrive.

All values are sums over tokens in float64, so ranks and batches are combined by addition: no mean of means, nothing
that depends on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.models.loss import IGNORED

CHUNK = 1024
"""Tokens whose logits are turned to fp32 at once."""


Exchange = Callable[[Tensor], Tensor]


def _alone(x: Tensor) -> Tensor:
    return x


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

    def add(
        self, logits: Iterable[Tensor], targets: Tensor, *, gather: Exchange = _alone, add_up: Exchange = _alone
    ) -> None:
        """Add the tokens of one batch: for each head logits [..., V]; targets [...] with IGNORED where none is.

        Logits are taken one head at a time, so a generator keeps those of one head alive only, beside their fp32 sum.
        Where other ranks hold other heads, ``gather`` joins what all heads say, [heads here, ...] to [M, ...], and
        ``add_up`` sums over those ranks.
        """
        targets = targets.reshape(-1)
        valid = targets != IGNORED
        total: Tensor | None = None
        at_target, choices = [], []
        for head_logits in logits:
            flat = head_logits.reshape(-1, head_logits.shape[-1])
            logp, choice = zip(*(_read_off(*part) for part in _chunks(flat, targets)), strict=True)
            at_target.append(torch.cat(logp)[valid])
            choices.append(torch.cat(choice)[valid])
            total = flat.to(torch.float32, copy=True) if total is None else total.add_(flat)
            del flat, head_logits  # before the next head makes its own
        assert total is not None
        logp_MN, choice_MN = gather(torch.stack(at_target)), gather(torch.stack(choices))
        count = len(choice_MN)
        total = add_up(total).div_(count)
        self.heads -= logp_MN.sum(1).cpu()
        self.probability -= float((logp_MN.logsumexp(0) - math.log(count)).sum())
        mean_logit = torch.cat([_read_off(*part)[0] for part in _chunks(total, targets)])
        self.logit -= float(mean_logit[valid].sum())
        for first in range(count):
            for second in range(first):
                self.disagreements += float((choice_MN[first] != choice_MN[second]).sum())
        self.targets += float(valid.sum())

    def table(self) -> Tensor:
        """All sums as one float64 vector, to be added over ranks."""
        rest = torch.tensor([self.probability, self.logit, self.disagreements, self.targets], dtype=torch.float64)
        return torch.cat([self.heads, rest])


def _chunks(logits_NV: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(logits_NV.split(CHUNK), targets_N.split(CHUNK), strict=True)


def _read_off(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target (fp64; meaningless where it is IGNORED) and the most likely token, both [N]."""
    logp_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    return logp_NV.gather(1, targets_N.clamp_min(0)[:, None])[:, 0].double(), logits_NV.argmax(-1)


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
