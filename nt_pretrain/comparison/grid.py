"""The runs of a comparison: every row with every seed, and dense models that cost as much as each row."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from typing import get_args

from nt_pretrain.config.checks import problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.method_section import MethodName
from nt_pretrain.config.schema import Config
from nt_pretrain.train.costs import Costs, costs_of

DENSE = ("method.name=dense",)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        options: section.key=value, what makes it differ from the configuration file.
        reference: steps of a dense model that executes as many operations in training.
    """

    name: str
    options: tuple[str, ...]
    steps: int
    costs: Costs
    reference: int


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation; rows may share it. ``source`` is a checksum of the configuration file."""

    label: str
    options: tuple[str, ...]
    seed: int
    source: int

    @property
    def name(self) -> str:
        # Other options are another run: a finished one must not stand in for it.
        checksum = zlib.crc32(" ".join(self.options).encode(), self.source)
        label = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        return f"{label}-seed{self.seed}-{checksum:08x}"


def rows_of(path: str, overrides: list[str], wanted: list[str]) -> list[Row]:
    """The rows named ``wanted``: rows of the file, or methods; all rows of the file where none is named.

    Raises:
        ConfigErrors: a name is neither, or the options of a row do not fit; with all reasons.
    """
    base = load_config(path, overrides)
    known = dict(base.compare.rows)
    methods = {name: (f"method.name={name}",) for name in get_args(MethodName) if name != "none"}
    names = wanted or list(known)
    unknown = [name for name in names if name not in known and name not in methods]
    if unknown or not names:
        there = ", ".join([*known, *(name for name in methods if name not in known)])
        raise ConfigErrors([f"--methods {','.join(unknown) or 'names none'}: rows and methods are {there}"])
    chosen = {name: known.get(name) or methods[name] for name in names}
    wrong = [
        f"row {name}: {problem}"
        for name, options in chosen.items()
        for problem in problems(load_config(path, [*overrides, *options]), world_size=1)
    ]
    if wrong:
        raise ConfigErrors(wrong)
    return [_row(name, path, overrides, options, base) for name, options in chosen.items()]


def jobs_of(path: str, overrides: list[str], rows: list[Row], seeds: int) -> dict[tuple[str, int], Job]:
    """All runs by row and seed; the dense model of as many operations as row R stands under ``dense:R``."""
    # Rows and claims may change; what is trained is the rest of the file.
    source = zlib.crc32(load_config(path, []).model_dump_json(exclude={"compare"}).encode())
    found = {}
    for row in rows:
        for seed in range(seeds):
            found[row.name, seed] = Job(row.name, (*overrides, *row.options, *_length(row.steps)), seed, source)
            same = (*overrides, *DENSE, *_length(row.reference))
            found[f"dense:{row.name}", seed] = Job("dense", same, seed, source)
    # Rows that are dense models themselves are their own references.
    own = {(job.options, job.seed): job for (name, _), job in found.items() if not name.startswith("dense:")}
    return {key: own.get((job.options, job.seed), job) for key, job in found.items()}


def _row(name: str, path: str, overrides: list[str], options: tuple[str, ...], base: Config) -> Row:
    # Runs of a grid have the steps of its budget, whatever their density: jobs are told so, and costs are theirs.
    steps = load_config(path, [*overrides, *options]).train.steps
    config = load_config(path, [*overrides, *options, *_length(steps)])
    # One unit for all rows, whatever model a row has: the dense model that is run beside it.
    dense = costs_of(load_config(path, [*overrides, *DENSE])).dense
    if base.compare.budget == "flops":
        steps = max(1, round(steps * dense.executed / costs_of(config).ensemble.executed))
        config = load_config(path, [*overrides, *options, *_length(steps)])
    costs = replace(costs_of(config), dense=dense, dense_steps=base.train.steps)
    reference = max(1, round(costs.dense_steps * costs.ensemble.executed / costs.dense.executed))
    return Row(name, options, steps, costs, reference)


def _length(steps: int) -> tuple[str, ...]:
    return (f"train.steps={steps}", "train.steps_over_density=false")
