"""Parts that methods are put together from: the number of members, one dense or one sparse model of a configuration."""

from __future__ import annotations

from nt_pretrain.config.schema import Config, OptimSection, SparsitySection
from nt_pretrain.methods.phase import changed

WHOLE_MODEL = {"heads": "all", "head_blocks": "no_vocab"}
"""Scopes that only an ensemble of heads has, and what they are of a single model."""

PARENT_SHARE = 0.7
"""Default of ``method.parent_share`` where children need a trained parent."""


def shaped(schedule: str, **options: object) -> dict[str, object]:
    """Changes that give the learning rate another shape: what the old one read and this one does not is gone."""
    default = OptimSection()
    shape = {f"optim.{key}": getattr(default, key) for key in ("min_lr_ratio", "milestones", "decay_factor")}
    return shape | {"optim.schedule": schedule} | {f"optim.{key}": value for key, value in options.items()}


def members_of(config: Config) -> int:
    """M, the members of the ensemble that the method makes."""
    heads = config.model.heads
    return config.method.members or (heads if heads > 1 else 3)


def parent_steps(config: Config) -> int:
    """Steps of a parent that is trained for its children."""
    share = PARENT_SHARE if config.method.parent_share is None else config.method.parent_share
    return max(1, round(share * config.total_steps))


def dense(config: Config) -> Config:
    """Without a topology."""
    return config.model_copy(update={"sparsity": SparsitySection()})


def single(config: Config) -> Config:
    """Of one head as wide as the trunk, its topology over the whole model."""
    scope = WHOLE_MODEL.get(config.sparsity.scope, config.sparsity.scope)
    one = {"model.heads": 1, "model.blocks_in_head": 0, "model.head_slim": 1, "model.trunks": 1}
    return changed(config, one | {"sparsity.scope": scope})
