"""Synaptic stripping: a unit that is never active loses its most negative incoming weights until it is.

Source: Whitaker and Whitley 2023 (arXiv 2302.05818, code synaptic-stripping). What is removed never returns. These are
its rules; :mod:`nt_pretrain.train.stripping` applies them to the shards of a run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import CHUNK
from nt_pretrain.models.units import units_of
from nt_pretrain.sparsity.budget import LayerBudget


def is_stripping_step(config: Config, step: int) -> bool:
    """Whether weights are removed after the gradients of ``step`` (counted from 1)."""
    every = config.stripping.every_steps
    return every > 0 and step % every == 0


def window_position(config: Config, step: int) -> int:
    """Number of ``step`` among those whose activity decides the next removal, from 1 on; 0: it is none of them."""
    every = config.stripping.every_steps
    if every == 0:
        return 0
    window = config.stripping.window_steps or every
    return max(0, (step - 1) % every + 1 - (every - window))


def strippable_budgets(config: Config, shapes: dict[str, tuple[int, ...]]) -> dict[str, LayerBudget]:
    """Budgets of the layers that may be stripped, all of their weights; empty where stripping is off."""
    if config.stripping.every_steps == 0:
        return {}
    names = [units.incoming for units in units_of(config.model)]
    sizes = {name: math.prod(shapes[name]) for name in names}
    return {name: LayerBudget(shapes[name], 1, sizes[name], sizes[name]) for name in names}


def lowered(planned: dict[str, LayerBudget], before: dict[str, LayerBudget]) -> dict[str, LayerBudget]:
    """``planned`` budgets less the weights that were stripped so far, as ``before`` has them; one weight at least."""
    return {
        name: replace(
            budget, active=max(1, budget.active - before[name].stripped), stripped=before[name].stripped
        )
        if before[name].stripped
        else budget
        for name, budget in planned.items()
    }  # fmt: skip


def dead_units(active: Tensor, seen: int, threshold: float) -> Tensor:
    """Which units (bool) were active, ``active`` [units] int64 times of ``seen``, in no larger share than
    ``threshold``. With 0: never.
    """
    return active <= math.floor(Fraction(str(threshold)) * seen)


def most_negative(values: Tensor, active: Tensor, quantile: float) -> Tensor:
    """Which of the ``active`` weights [rows, columns] (bool) go: of each row those below its ``quantile``.

    Of n weights that are ceil(quantile * (n - 1)), as many as lie below torch.quantile of numbers that all differ. They
    are the smallest with their sign, so the most negative; of equal ones the first columns. A row never loses its last.

    Args:
        values: of whole rows, [rows, columns].
    """
    share = Fraction(str(quantile)).limit_denominator(1_000_000)
    chosen = torch.zeros_like(active)
    rows_at_once = max(1, 16 * CHUNK // max(1, values.shape[1]))
    for start in range(0, len(values), rows_at_once):
        part = slice(start, start + rows_at_once)
        others = (active[part].sum(1) - 1).clamp_(min=0)
        wanted = (others * share.numerator + share.denominator - 1) // share.denominator
        order = values[part].masked_fill(~active[part], math.inf).argsort(dim=1, stable=True)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        chosen[part] = torch.empty_like(order).scatter_(1, order, place) < wanted[:, None]
    return chosen
