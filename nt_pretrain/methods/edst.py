"""EDST ensemble of FreeTickets (Liu et al., ICLR 2022, arXiv 2106.14568): one sparse run that leaves M tickets behind.

After an exploration at the full learning rate come M refinements at a small one; the state at the end of each is a
ticket. Before every refinement but the first the topology escapes: one update with a large prune rate.

Differences to the authors' code: active units are counted exactly, not drawn; the escape grows by the dense gradient of
a fresh step; a ticket is the last state of its refinement, not the one that was best on data to report on.
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Continue, Fresh, Phase, changed, of_length, seed_of, shares
from nt_pretrain.methods.settings import members_of, shaped, single

CONSTANT = shaped("linear", min_lr_ratio=1.0)
"""After the warm-up the full learning rate all along."""


def phases(config: Config) -> list[Phase]:
    """Exploration, then M refinements."""
    method, total, model = config.method, config.total_steps, single(config)
    explored = max(1, round(method.explore * total))
    explore = changed(of_length(model, explored), CONSTANT)
    refine = {
        "optim.lr": config.optim.lr * method.refine_lr,
        "optim.warmup_steps": 0,
        # Exploration has come down to it; a refinement must not begin at density_start again.
        "sparsity.density_schedule": "constant",
        **(
            shaped("step", milestones=(0.5,), decay_factor=0.1)
            if method.refine_schedule == "step"
            else shaped("cosine", min_lr_ratio=_floor(config))
        ),
    }
    found = [Phase("explore", explore, Fresh())]
    for number, steps in enumerate(shares(total - explored, members_of(config))):
        own = of_length(model, steps, refine | {"run.seed": seed_of(config, number + 1)})
        start = Continue(escape=method.escape_rate if number else 0.0)
        found.append(Phase(f"refine_{number}", own, start, emits=f"ticket_{number}"))
    return found


def _floor(config: Config) -> float:
    """Where a cosine ends: as the configured schedule does, if that says."""
    return config.optim.min_lr_ratio if config.optim.schedule != "step" else 0.0
