"""How many parameters a model has and how much arithmetic a token costs, from shapes and budgets alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.groups import GROUPS, Group, group_of, part_of
from nt_pretrain.models.network import block_count, build
from nt_pretrain.models.sharing import ALONE, Sharing, is_frozen, sharing_of, uses_of
from nt_pretrain.sparsity.budget import LayerBudget

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Count:
    """Parameters: all that exist, and those that are active."""

    total: int = 0
    active: int = 0

    @property
    def density(self) -> float:
        return self.active / self.total if self.total else 1.0

    def __add__(self, other: Count) -> Count:
        return Count(self.total + other.total, self.active + other.active)


@dataclass(frozen=True)
class Accounts:
    """Parameters of a model.

    Attributes:
        by_group: embedding, attention, ffn, linear, output, norm; only groups that exist.
        by_part: ``trunk`` (absent in a deep ensemble), ``heads.0``, ``heads.1``, ...
        per_token: weights that one token is multiplied with on its way through trunk and all heads: every matrix but
            the embedding, which is looked up; for every member that shares it once.
        frozen: those of them that are not trained.
        sparse: parameters that have a topology.
    """

    by_group: dict[Group, Count]
    by_part: dict[str, Count]
    per_token: Count
    frozen: Count
    sparse: Count

    @property
    def all(self) -> Count:
        return _sum(self.by_group.values())


def shapes_of(model: ModelSection) -> Shapes:
    """Shape of every parameter by name, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in build(model).named_parameters()}


def account(shapes: Shapes, budgets: dict[str, LayerBudget], sharing: Sharing = ALONE) -> Accounts:
    """Count parameters of ``shapes``; those without a budget are dense."""
    counts = {name: _count(shape, budgets.get(name)) for name, shape in shapes.items()}
    groups = [group for group in GROUPS if any(group_of(name) == group for name in counts)]
    parts = list(dict.fromkeys(part_of(name) for name in counts))
    used = {
        name: _times(count, uses_of(name, sharing))
        for name, count in counts.items()
        if len(shapes[name]) > 1 and group_of(name) not in ("embedding", "norm")
    }
    return Accounts(
        by_group={group: _sum(counts[name] for name in counts if group_of(name) == group) for group in groups},
        by_part={part: _sum(counts[name] for name in counts if part_of(name) == part) for part in parts},
        per_token=_sum(used.values()),
        frozen=_sum(used[name] for name in used if is_frozen(name, sharing)),
        sparse=_sum(counts[name] for name in budgets),
    )


def attention_heads_of_all_blocks(model: ModelSection) -> int:
    """Attention heads of all blocks that exist: those of each trunk once and those of every head."""
    in_trunk = model.trunks * (block_count(model) - model.blocks_in_head) * model.attention_heads
    return in_trunk + model.heads * model.blocks_in_head * (model.attention_heads // model.head_slim)


def attention_flops_per_token(model: ModelSection, sequence_length: int) -> int:
    """Floating point operations of attention scores and their weighted sums per trained token, forward and backward.

    Per block 2 products of 2 * W * T operations, W the width of all its attention heads together (in general that of
    the model), thrice (forward, and two products each in backward), halved since attention is causal: 12 * W * T / 2.
    Every head counts.
    """
    heads = attention_heads_of_all_blocks(model) * sharing_of(model).copies
    return 6 * model.head_dim * sequence_length * heads


def flops_per_token(per_token: int, attention: int, frozen: int = 0) -> int:
    """Operations per trained token: 2 forward and 4 backward for each weight it is multiplied with, of those that are
    ``frozen`` 2, plus attention.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), with attention counted.
    """
    return 6 * per_token - 2 * frozen + attention


def _count(shape: tuple[int, ...], budget: LayerBudget | None) -> Count:
    total = math.prod(shape)
    return Count(total, total if budget is None else budget.active * budget.unit**2)


def _times(count: Count, uses: int) -> Count:
    return Count(count.total * uses, count.active * uses)


def _sum(counts: Iterable[Count]) -> Count:
    return sum(counts, Count())
