"""Synaptic stripping beside a run: counts which hidden units training batches activate, and prunes towards the dead.

Source: arXiv 2302.05818. Only batches that are trained on count: hooks are attached for the gradients of the steps of a
window and removed before anything else is computed. Weights go after the gradients of a step and before its topology
update and its optimizer step, which neither grows them again nor moves them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Phase
from nt_pretrain.models.accounting import account, shapes_of
from nt_pretrain.models.groups import part_of
from nt_pretrain.parallel.collectives import sum_integers
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.stripping import dead_units, is_stripping_step, most_negative, window_position
from nt_pretrain.sparsity.topology import SparseLayer, mask_
from nt_pretrain.train import readings
from nt_pretrain.train.observer import Observer
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.topology import of_all_heads, parts


@dataclass(frozen=True)
class Stripped:
    """What one removal found and did, over all ranks, by the name of the weight that leads to the units.

    Attributes:
        dead: which units are dead [units] (bool).
        removed: weights removed now.
        useless: active weights that still lead to dead units, those removed left out.
    """

    dead: dict[str, Tensor]
    removed: dict[str, int]
    useless: dict[str, int]


@dataclass(frozen=True)
class Stripping:
    """The rule in one phase; without ``stripping.every_steps`` it does nothing. Steps are those of the run."""

    phase: Phase
    state: TrainState
    ranks: Ranks
    observer: Observer

    def before_step(self, step: int) -> None:
        """Count from here on what ``step`` activates, if it belongs to a window."""
        activity = self.state.activity
        position = window_position(self.phase.config, step - self.phase.before)
        if activity is None or position == 0:
            return
        if position == 1:
            activity.restart()
        activity.listen(self.state.model)

    def after_gradients(self, step: int) -> None:
        """Stop counting; remove weights if it is time, and tell of it. Collective."""
        if self.state.activity is None:
            return
        self.state.activity.stop()
        config = self.phase.config
        if is_stripping_step(config, step - self.phase.before):
            found = strip(self.state, config, self.ranks)
            values = readings_of(found, self.state, config)
            density = readings.of_topology(self.state.budgets)
            dead = {name: int(each.sum()) for name, each in found.dead.items()}
            facts: dict[str, object] = {"digest": self.state.digest(self.ranks), "dead": dead}
            self.observer.stripped(step, values, density, _in_words(values, found), facts)


def strip(state: TrainState, config: Config, ranks: Ranks) -> Stripped:
    """Find the dead units by what was counted, and remove some of their weights in place. Collective."""
    activity, section = state.activity, config.stripping
    assert activity is not None, "nothing is counted where stripping is off"
    activity.agree(ranks)
    dead = {
        units.incoming: dead_units(active, seen, section.threshold) for units, active, seen in activity.by_layer()
    }  # fmt: skip
    counts: dict[str, tuple[int, int, int]] = {}
    strippable = [layer for layer in state.layers if layer.stripped is not None]
    for some, group in parts(strippable, ranks):
        local = [each for layer in some for each in _strip_layer(layer, state, dead[layer.name], section.quantile)]
        device = some[0].active.device if some else ranks.device
        sums = sum_integers(local, group, device)
        for number, layer in enumerate(some):
            removed, useless, left = sums[3 * number : 3 * number + 3]
            counts[layer.name] = removed, useless, left
    counts = of_all_heads(counts, ranks, list(dead))
    for name, (removed, _, left) in counts.items():
        before = state.budgets[name]
        if left != before.active - removed:
            raise AssertionError(f"{name}: {left} active weights after {removed} were removed of {before.active}")
        state.budgets[name] = replace(before, active=left, stripped=before.stripped + removed)
    for layer in strippable:
        layer.budget = state.budgets[layer.name]
    return Stripped(
        dead, {name: each[0] for name, each in counts.items()}, {name: each[1] for name, each in counts.items()}
    )


def _strip_layer(layer: SparseLayer, state: TrainState, dead: Tensor, quantile: float) -> tuple[int, int, int]:
    """Of the rows held here: weights removed, active ones that lead to dead units still, active ones in all."""
    assert layer.stripped is not None
    # FSDP2 and tensor parallelism cut these layers along their rows, so a unit's weights lie on one rank.
    assert layer.held.columns.numel() == layer.held.total_columns, f"{layer.name}: rows are cut"
    weight = state.optimizer.shards[layer.name].detach()
    rows = dead.to(layer.active.device)[layer.held.rows].nonzero().view(-1)
    shape = (layer.held.rows.numel(), layer.held.total_columns)
    active = layer.active.view(shape)
    gone = torch.zeros_like(active)
    gone[rows] = most_negative(weight.view(shape)[rows], active[rows], quantile)
    layer.active &= ~gone.view(-1)
    layer.stripped |= gone.view(-1)
    average = [state.average.values[layer.name]] if state.average is not None else []
    for tensor in (weight, *state.optimizer.moments(layer.name).values(), *average):
        mask_(tensor, ~gone.view(-1))
    return int(gone.sum()), int(layer.active.view(shape)[rows].sum()), int(torch.count_nonzero(layer.active))


def readings_of(found: Stripped, state: TrainState, config: Config) -> dict[str, float]:
    """Metrics of a removal: dead units in all and per part, removed weights, and the parameters that have an effect."""
    values: dict[str, float] = {"stripping/dead_units": sum(int(each.sum()) for each in found.dead.values())}
    for name, dead in found.dead.items():
        key = "stripping/dead_units_" + part_of(name).replace("heads.", "head_")
        values[key] = values.get(key, 0) + int(dead.sum())
    active = account(shapes_of(config.model), state.budgets).all.active
    return values | {
        "stripping/removed": sum(found.removed.values()),
        "stripping/removed_in_all": sum(budget.stripped for budget in state.budgets.values()),
        "stripping/effective_parameters": active - sum(found.useless.values()),
    }


def _in_words(values: dict[str, float], found: Stripped) -> str:
    start = "stripping/dead_units_"
    by_part = ", ".join(
        f"{key.removeprefix(start).replace('_', ' ')} {n:,}" for key, n in values.items() if start in key
    )
    units = sum(each.numel() for each in found.dead.values())
    return (
        f"{values['stripping/dead_units']:,} of {units:,} hidden units are dead ({by_part}); removed "
        f"{values['stripping/removed']:,} of their weights, {values['stripping/removed_in_all']:,} so far; "
        f"{values['stripping/effective_parameters']:,} effective parameters"
    )
