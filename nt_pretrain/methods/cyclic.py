"""Ensembles of one dense run whose learning rate goes up again: Snapshot ensembles and fast geometric ensembling.

Snapshot: M cosine cycles, a member at the end of each (Huang et al. 2017, arXiv 1704.00109). FGE: short linear cycles
after most of the training, a member wherever the learning rate is lowest (Garipov et al. 2018, arXiv 1802.10026).
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Continue, Fresh, Phase, of_length, seed_of, shares
from nt_pretrain.methods.settings import dense, members_of, shaped, single


def snapshot(config: Config) -> list[Phase]:
    """M cosine cycles in train.steps steps; only the first warms up."""
    model, found = single(dense(config)), []
    for number, steps in enumerate(shares(config.total_steps, members_of(config))):
        cycle = shaped("cosine", min_lr_ratio=0.0) | {"run.seed": seed_of(config, number)}
        cycle |= {} if number == 0 else {"optim.warmup_steps": 0}
        start = Continue() if number else Fresh()
        found.append(Phase(f"cycle_{number}", of_length(model, steps, cycle), start, emits=f"snapshot_{number}"))
    return found


def fge(config: Config) -> list[Phase]:
    """A training along a cosine to the lowest rate, then M cycles, up and down, in what remains."""
    method, model = config.method, single(dense(config))
    first = max(1, round(method.start * config.total_steps))
    lowest = {"min_lr_ratio": method.lowest_lr}
    found = [Phase("train", of_length(model, first, shaped("cosine", **lowest)), Fresh())]
    for number, steps in enumerate(shares(config.total_steps - first, members_of(config))):
        cycle = shaped("linear", **lowest) | {"optim.warmup_from": method.lowest_lr}
        cycle |= {"optim.warmup_steps": steps // 2, "run.seed": seed_of(config, number + 1)}
        found.append(Phase(f"cycle_{number}", of_length(model, steps, cycle), Continue(), emits=f"fge_{number}"))
    return found
