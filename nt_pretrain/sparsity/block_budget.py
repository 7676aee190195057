"""How many b x b blocks each line of a layer keeps: the budget of :mod:`nt_pretrain.sparsity.budget`, made the same for
all its lines.

A line is a block row (balance ``row``: constant fan-in) or a block column (balance ``col``: constant fan-out, for
layers that tensor parallelism cuts along their columns). With as many blocks in every line, values are one dense
tensor, ranks that hold as many lines hold as much work, and an update of whole lines asks nobody. The price is that a
layer's number of active blocks is a multiple of its lines; :class:`BlockBudget` says what was asked and what it became.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.counter_random import key_of
from nt_pretrain.models.groups import balance_of
from nt_pretrain.sparsity.budget import LayerBudget, plan_budgets, sparse_names

Balance = Literal["row", "col"]


@dataclass(frozen=True)
class BlockBudget:
    """The number of active blocks in each line of a layer.

    Attributes:
        shape: of the weight, [outputs, inputs], or [outputs, channels, k, k] of a convolution, whose blocks are those
            of the matrix [outputs, k * k * channels].
        unit: side b of a block.
        balance: whether a line is a block row or a block column.
        fan: active blocks in each line.
        asked: active weights of the layer before blocks and lines made them a multiple of ``lines * unit**2``.
    """

    shape: tuple[int, ...]
    unit: int
    balance: Balance
    fan: int
    asked: int

    @property
    def rows(self) -> int:
        return self.shape[0] // self.unit

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:]) // self.unit

    @property
    def lines(self) -> int:
        return self.rows if self.balance == "row" else self.columns

    @property
    def across(self) -> int:
        """Blocks of a line, active or not."""
        return self.columns if self.balance == "row" else self.rows

    @property
    def active(self) -> int:
        return self.lines * self.fan

    @property
    def units(self) -> int:
        return self.rows * self.columns

    @property
    def density(self) -> float:
        """The density that the layer really has, ``fan / across``."""
        return self.fan / self.across

    @property
    def asked_density(self) -> float:
        return self.asked / math.prod(self.shape)

    def as_layer_budget(self) -> LayerBudget:
        """The same for the masked backend: only the number of active blocks counts there, not where they are."""
        return LayerBudget(self.shape, self.unit, self.units, self.active)


@dataclass
class _Twins:
    """Layers that get the same fan: one layer of the trunk, or the same layer of all heads."""

    names: list[str]
    lines: int
    across: int
    wanted: float  # fan, not yet whole
    fan: int = 0

    @property
    def quantum(self) -> int:
        """Blocks that come with one more in each line."""
        return len(self.names) * self.lines

    def off(self, step: int) -> float:
        """How far from the wanted fan ``step`` more would lead."""
        return abs(self.fan + step - self.wanted)


def plan_block_budgets(
    shapes: dict[str, tuple[int, ...]],
    sparsity: SparsitySection,
    *,
    balances: dict[str, Balance] | None = None,
    density: float | None = None,
) -> dict[str, BlockBudget]:
    """Budget of every sparse layer, the same for all its lines.

    Budgets of :func:`nt_pretrain.sparsity.budget.plan_budgets` for single weights are rounded by largest remainder over
    the layers, so that the sum of active weights comes within half a quantum of what was asked, a quantum being one
    block more in every line of one layer. The same layer of all heads gets the same fan, and makes one quantum: heads
    then run in one kernel, and none is richer than another. A line keeps at least one block; what that takes too much
    is taken from the layers that have more and are not dense.

    Args:
        shapes: parameter name to shape, the whole model.
        sparsity: the section of the configuration.
        balances: name to balance of the layers that are not balanced by row.
        density: overall density over the sparse layers; default ``sparsity.density``.

    Returns:
        Name to budget, in the order of ``shapes``; the numbers do not depend on the order.

    Raises:
        ValueError: what ``plan_budgets`` raises; unit 1; a balance of a layer that is not sparse; a density so small
            that not every line can keep a block.
    """
    if sparsity.unit == 1:
        raise ValueError("sparsity.unit is 1, and single weights make no blocks; set 16, 32, 64 or 128")
    balances = balances or {}
    plan_budgets(shapes, sparsity, density=density)  # refuses shapes that blocks do not fit
    # Budgets of blocks are rounded already, coarsely in small layers; those of single weights are exact.
    shapes = {name: shapes[name] for name in sparse_names(shapes, sparsity.scope, sparsity.unit)}
    budgets = plan_budgets(shapes, sparsity.model_copy(update={"unit": 1}), density=density)
    unknown = sorted(set(balances) - set(budgets))
    if unknown:
        raise ValueError(f"a balance is given for {unknown[0]}, which is no sparse layer")
    empty = {name: _unplanned(budget, sparsity.unit, balances.get(name, "row")) for name, budget in budgets.items()}
    groups = _twins(empty)
    asked = sum(budget.active for budget in budgets.values()) / sparsity.unit**2
    _ensure_one(groups, asked, sparsity.unit)
    _round(groups, asked)
    fans = {name: group.fan for group in groups for name in group.names}
    return {name: BlockBudget(x.shape, x.unit, x.balance, fans[name], x.asked) for name, x in empty.items()}


def line_budgets(shapes: dict[str, tuple[int, ...]], sparsity: SparsitySection) -> dict[str, BlockBudget]:
    """:func:`plan_block_budgets` with the balance that each layer has by its name."""
    balances = {name: balance_of(name) for name in sparse_names(shapes, sparsity.scope, sparsity.unit)}
    return plan_block_budgets(shapes, sparsity, balances=balances)


def layer_budgets(
    shapes: dict[str, tuple[int, ...]], sparsity: SparsitySection, *, density: float | None = None
) -> dict[str, LayerBudget]:
    """Budgets in units as ``sparsity.balance`` asks for them: of whole layers, or what lines make of them.

    Raises:
        ValueError: as :func:`plan_block_budgets`.
    """
    if sparsity.balance == "line":
        return {name: budget.as_layer_budget() for name, budget in line_budgets(shapes, sparsity).items()}
    return plan_budgets(shapes, sparsity, density=density)


def overall(budgets: dict[str, BlockBudget]) -> tuple[float, float]:
    """Densities over all layers of ``budgets``: asked, and what it became."""
    weights = sum(x.units * x.unit**2 for x in budgets.values())
    active = sum(x.active * x.unit**2 for x in budgets.values())
    asked = sum(x.asked for x in budgets.values())
    return asked / weights, active / weights


def _unplanned(budget: LayerBudget, unit: int, balance: Balance) -> BlockBudget:
    return BlockBudget(budget.shape, unit, balance, 0, budget.active)


def _twins(layers: dict[str, BlockBudget]) -> list[_Twins]:
    """Groups of layers with one fan, in an order that depends on their names alone and favours none."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(layers):
        layer = layers[name]
        common = re.sub(r"^heads\.\d+\.", "heads.", name)
        groups.setdefault((common, layer.shape, layer.balance, layer.asked), []).append(name)
    made = []
    for names in groups.values():
        layer = layers[names[0]]
        made.append(_Twins(names, layer.lines, layer.across, layer.asked / layer.unit**2 / layer.lines))
    return sorted(made, key=lambda group: key_of("block budget", group.names[0]))


def _ensure_one(groups: list[_Twins], asked: float, unit: int) -> None:
    """Raise wanted fans to 1, and lower the others, except full ones, so that the sum stays ``asked``."""
    least = sum(group.quantum for group in groups)
    if asked < least:
        raise ValueError(
            f"sparsity.density asks for {asked:,.1f} active blocks of {unit} x {unit}, and one in each line of each "
            f"layer makes {least:,}; raise sparsity.density or choose a smaller sparsity.unit"
        )
    poor = [group for group in groups if group.wanted < 1.0]
    while poor:
        for group in poor:
            group.wanted = 1.0
        rich = [group for group in groups if 1.0 < group.wanted < group.across]
        rich = rich or [group for group in groups if group.wanted > 1.0]
        fixed = sum(group.quantum * group.wanted for group in groups if group not in rich)
        have = math.fsum(group.quantum * group.wanted for group in rich)
        left = asked - fixed
        if not rich or left <= 0:
            raise ValueError(
                f"sparsity.density asks for {asked:,.1f} active blocks of {unit} x {unit}; layers that are dense and "
                f"one block in each line of the others make {fixed:,.0f}. Raise sparsity.density, lower "
                "sparsity.group_density or choose a smaller sparsity.unit"
            )
        for group in rich:
            group.wanted *= left / have
        poor = [group for group in groups if group.wanted < 1.0]


def _round(groups: list[_Twins], asked: float) -> None:
    """Whole fans, each within one of the wanted, whose sum of blocks is as near to ``asked`` as that allows."""
    for group in groups:
        group.fan = max(1, math.floor(group.wanted + 1e-9))
    missing = asked - sum(group.quantum * group.fan for group in groups)
    while missing:
        step = 1 if missing > 0 else -1
        nearer = [
            group
            for group in groups
            if abs(missing - step * group.quantum) < abs(missing)
            and group.off(step) < 1.0
            and 1 <= group.fan + step <= group.across
        ]
        if not nearer:
            return
        # min takes the first of equals, and their order is a hash of their names.
        best = min(nearer, key=lambda group: round(group.off(step), 9))
        best.fan += step
        missing -= step * best.quantum
