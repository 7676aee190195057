"""What a step, an update or a state looks like as flat metrics (``group/name`` to float)."""

from __future__ import annotations

from nt_pretrain.models.groups import GROUPS, group_of
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.update import LayerChange
from nt_pretrain.train.step import Losses


def of_step(losses: Losses, *, head_loss: str, grad_norm: float, lr: float) -> dict[str, float]:
    """Losses in nats per token; ``train/loss`` is the mean or sum over heads that is trained on."""
    heads = losses.per_head
    values = {"train/loss": sum(heads) / (len(heads) if head_loss == "mean" else 1)}
    values |= {f"train/loss_head_{head}": loss for head, loss in enumerate(heads)}
    return values | {"optim/grad_norm": grad_norm, "optim/lr": lr}


def of_topology(budgets: dict[str, LayerBudget]) -> dict[str, float]:
    """Density over the sparse layers, overall and per group of layers."""
    units = {name: budget.units * budget.unit**2 for name, budget in budgets.items()}
    active = {name: budget.active * budget.unit**2 for name, budget in budgets.items()}
    return _shares("sparsity/density", active, units)


def of_update(changes: dict[str, LayerChange], prune_rate: float) -> dict[str, float]:
    """Turnover (grown units as a share of the active ones) and explored share, overall and per group of layers."""
    active = {name: change.active for name, change in changes.items()}
    values = _shares("sparsity/turnover", {name: change.grown for name, change in changes.items()}, active)
    units = {name: change.units for name, change in changes.items()}
    values |= _shares("sparsity/explored", {name: change.explored for name, change in changes.items()}, units)
    return values | {"sparsity/prune_rate": prune_rate}


def _shares(key: str, part: dict[str, int], whole: dict[str, int]) -> dict[str, float]:
    values = {key: sum(part.values()) / sum(whole.values())}
    for group in GROUPS:
        names = [name for name in whole if group_of(name) == group]
        if names:
            values[f"{key}_{group}"] = sum(part[name] for name in names) / sum(whole[name] for name in names)
    return values
