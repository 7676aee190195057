"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from nt_pretrain.config.schema import Config


def learning_rate(config: Config, step: int) -> float:
    """Learning rate of optimizer step ``step``, counted from 1; the first step of a warm-up already moves.

    Warm-up is linear from ``warmup_from * lr`` to ``optim.lr``. Then cosine or linear to ``min_lr_ratio * lr`` at the
    last step, or (wsd: warm-up, stable, decay) constant until the last ``decay_fraction`` of the steps, then linear, or
    (step) constant but multiplied by ``decay_factor`` after each share ``milestones`` of all steps, warm-up included.
    """
    optim, total, warmup = config.optim, config.total_steps, config.warmup_steps
    if step <= warmup:
        return optim.lr * step / warmup * (1.0 - optim.warmup_from) + optim.lr * optim.warmup_from
    if optim.schedule == "step":
        return optim.lr * optim.decay_factor ** sum(step > round(share * total) for share in optim.milestones)
    floor = optim.min_lr_ratio
    if optim.schedule == "wsd":
        decay = max(1, round(optim.decay_fraction * total))
        left = min(1.0, (total - step) / decay)
        return optim.lr * (floor + (1.0 - floor) * left)
    progress = (step - warmup) / max(1, total - warmup)
    left = 1.0 - progress if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (floor + (1.0 - floor) * left)
