"""What the runs of a row have in common: means over seeds with standard errors."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nt_pretrain.comparison.grid import Job, Row
from nt_pretrain.comparison.work import record_path

MEASURES = ("nll", "accuracy", "ece", "brier", "perplexity")
MEMBERS_OF_SETS = ("mean_head", "ensemble", "ensemble_logit")


@dataclass(frozen=True)
class Value:
    """A mean over seeds and its standard error, nan for one seed."""

    each: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.each)

    @property
    def error(self) -> float:
        count = len(self.each)
        return statistics.stdev(self.each) / math.sqrt(count) if count > 1 else math.nan


@dataclass(frozen=True)
class Result:
    """Of one row, or of its dense reference: measure to value, of the best member, the mean one and the ensemble.

    ``best`` is of the member with the lowest NLL on the very data that is reported, which flatters it.
    """

    best: dict[str, Value]
    mean: dict[str, Value]
    ensemble: dict[str, Value]
    members: int


def result_of(name: str, jobs: dict[tuple[str, int], Job], folder: Path) -> Result:
    """Results of all seeds of a row, or with ``dense:`` before its name of its reference."""
    records = [
        json.loads(record_path(folder, job).read_text(encoding="utf-8"))
        for (row, _), job in jobs.items()
        if row == name
    ]
    sets = [_sets(record) for record in records]
    return Result(
        best=_over_seeds([each[0] for each in sets]),
        mean=_over_seeds([each[1] for each in sets]),
        ensemble=_over_seeds([each[2] for each in sets]),
        members=len(_heads(records[0])),
    )


def results_of(rows: list[Row], jobs: dict[tuple[str, int], Job], folder: Path) -> dict[str, Result]:
    """By the names of the rows and their references."""
    names = [row.name for row in rows] + [f"dense:{row.name}" for row in rows]
    return {name: result_of(name, jobs, folder) for name in names}


def _heads(record: dict[str, Any]) -> list[str]:
    return [name for name in record["members"] if name not in MEMBERS_OF_SETS]


def _sets(record: dict[str, Any]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    members = record["members"]
    best = min(_heads(record), key=lambda name: members[name]["nll"])
    harmed = _harmed(record)
    values = [
        {key: members[name][key] for key in MEASURES if key in members[name]}
        | ({"corrupted_nll": harmed[name]} if name in harmed else {})
        for name in (best, "mean_head", "ensemble")
    ]
    values[2]["disagreement"] = record["set"].get("disagreement", 0.0)
    return values[0], values[1], values[2]


def _harmed(record: dict[str, Any]) -> dict[str, float]:
    """Mean NLL of each member under the harms of inputs that were measured."""
    robustness = record["robustness"]
    kinds = [] if robustness is None else [kind for kind in robustness["means"] if kind != "weights"]
    return {name: values["cNLL"] for kind in kinds for name, values in robustness["means"][kind].items()}


def _over_seeds(values: list[dict[str, float]]) -> dict[str, Value]:
    return {key: Value(tuple(each[key] for each in values)) for key in values[0]}
