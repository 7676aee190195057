"""Ensembles whose members share one network: what is a member's own is a small part of it.

BatchEnsemble (Wen, Tran and Ba 2020, arXiv 2002.06715) and MIMO (Havasi et al. 2021, arXiv 2010.06610) are ordinary
runs of one phase. LoRA-Ensemble (Halbheer et al. 2024, arXiv 2405.14438) has a trained parent before it. What the
networks compute is told in :mod:`nt_pretrain.models.sharing`. A topology, where there is one, is that of the shared
weights; the low-rank members are dense.
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.methods.phase import Clone, Fresh, Phase, changed, of_length, seed_of
from nt_pretrain.methods.settings import dense, members_of, parent_steps, single

OPTIONS = ("factor_init", "rank", "factor_gain")
"""Of the section model, those that only networks of members that share weights read."""


def batch_ensemble(config: Config) -> list[Phase]:
    """M members with rank-one factors on every layer, all trained on every batch."""
    return [Phase("train", _sharing(single(config), config, "rank_one"))]


def mimo(config: Config) -> list[Phase]:
    """One network that sees M samples at a time."""
    return [Phase("train", _sharing(single(config), config, "inputs"))]


def lora_ensemble(config: Config) -> list[Phase]:
    """A parent, then M members with low-rank additions to it, tuned together."""
    method, model, found = config.method, single(dense(config)), []
    if not method.parent:
        steps = parent_steps(config)
        defaults = {f"model.{each}": ModelSection.model_fields[each].default for each in OPTIONS}
        parent = changed(of_length(model, steps), defaults)
        found.append(Phase("parent", parent, Fresh(), emits="parent", speaks=False))
    steps = max(1, round(method.tune_share * config.total_steps))
    tuning = {
        "optim.lr": config.optim.lr * method.tune_lr, "optim.warmup_steps": min(config.warmup_steps, steps // 10),
        "run.seed": seed_of(config, 1),
    }  # fmt: skip
    start = Clone(method.parent or "parent", given=bool(method.parent))
    return [*found, Phase("tune", _sharing(of_length(model, steps, tuning), config, "low_rank"), start)]


def _sharing(model: Config, config: Config, kind: str) -> Config:
    return changed(model, {"model.sharing": kind, "model.members": members_of(config)})
