"""The sparse matrices of a configuration: which are alike, how dense they are, how many blocks of each size remain."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.groups import balance_of, group_of, part_of
from nt_pretrain.sparsity.block_budget import BlockBudget, line_budgets
from nt_pretrain.sparsity.budget import LayerBudget, plan_budgets

UNITS = (16, 32, 64, 128)


class NothingToTime(ValueError):
    """The configuration has no sparse matrix that could be timed."""


@dataclass(frozen=True)
class Kind:
    """Sparse matrices that are alike: one is timed, and counts as often as they are.

    Attributes:
        name: of the first one.
        label: of all of them.
        density: of single weights.
        fans: of each unit that fits, active blocks in a line: of the layers the mean, rounded.
        densities: of each unit, what whole blocks make of the density, the mean.
        in_heads, in_trunk: how many there are.
    """

    name: str
    label: str
    shape: tuple[int, int]
    density: float
    fans: dict[int, int]
    densities: dict[int, float]
    in_heads: int
    in_trunk: int

    @property
    def count(self) -> int:
        return self.in_heads + self.in_trunk

    @property
    def weight(self) -> float:
        """Share of the time that it gets: large ones more, though not as much as they take longer."""
        return math.sqrt(math.prod(self.shape))


@dataclass(frozen=True)
class Matrices:
    """What of a configuration is timed, and what is not.

    Attributes:
        refused: of each unit that does not fit the configuration, why.
        left_out: sparse layers that are no product of two matrices: embeddings, convolutions.
    """

    kinds: list[Kind]
    refused: dict[int, str]
    left_out: list[str]
    heads: int


def matrices_of(config: Config) -> Matrices:
    """The sparse matrices of ``config``, those that are alike together.

    Raises:
        NothingToTime: there are none.
    """
    sparsity = config.sparsity
    if sparsity.density == 1.0:
        raise NothingToTime(
            "sparsity.density is 1: no layer is sparse, so there is nothing to compare; give a density, such as "
            "sparsity.density=0.2"
        )
    shapes = shapes_of(config.model)
    singles = plan_budgets(shapes, sparsity.model_copy(update={"unit": 1}))
    blocks: dict[int, dict[str, BlockBudget]] = {}
    refused: dict[int, str] = {}
    for unit in UNITS:
        try:
            blocks[unit] = line_budgets(shapes, sparsity.model_copy(update={"unit": unit, "balance": "line"}))
        except ValueError as error:
            refused[unit] = str(error)
    sparse = [name for name, budget in singles.items() if budget.active < budget.units]
    products = [name for name in sparse if len(shapes[name]) == 2 and group_of(name) != "embedding"]
    if not products:
        raise NothingToTime(
            f"the sparse layers of this configuration are no matrix products ({', '.join(sparse[:3])}, ...), and only "
            "those are timed here"
        )
    left_out = [name for name in sparse if name not in products]
    return Matrices(_kinds(products, singles, blocks), refused, left_out, config.model.heads)


def _kinds(names: list[str], singles: dict[str, LayerBudget], blocks: dict[int, dict[str, BlockBudget]]) -> list[Kind]:
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        alike.setdefault((singles[name].shape, balance_of(name), singles[name].active), []).append(name)
    found = []
    for members in alike.values():
        first = members[0]
        outputs, inputs = singles[first].shape
        fans = {
            unit: round(statistics.fmean(budgets[name].fan for name in members)) for unit, budgets in blocks.items()
        }
        shares = {unit: statistics.fmean(budgets[name].density for name in members) for unit, budgets in blocks.items()}
        in_trunk = sum(part_of(name) == "trunk" for name in members)
        in_heads, density = len(members) - in_trunk, singles[first].density
        found.append(Kind(first, _label(members), (outputs, inputs), density, fans, shares, in_heads, in_trunk))
    return found


def _label(names: list[str]) -> str:
    """Such as "attention.query, key, value"."""
    ends = [name.removesuffix(".weight").split(".")[-2:] for name in names]
    first, others = ".".join(ends[0]), dict.fromkeys(end[-1] for end in ends if end[-1] != ends[0][-1])
    return ", ".join([re.sub(r"^\d+\.", "", first), *others])
