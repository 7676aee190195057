"""The results of a comparison as Markdown."""

from __future__ import annotations

import math

from nt_pretrain.comparison.claims import Verdict
from nt_pretrain.comparison.grid import Row
from nt_pretrain.comparison.results import Result, Value

DIGITS = {"accuracy": 4, "perplexity": 2}


def results_table(rows: list[Row], results: dict[str, Result], *, text: bool) -> str:
    """One line a row: what it costs, and the best single member, the mean member, the ensemble, and a dense model that
    executes as many operations.
    """
    headline = "perplexity" if text else "accuracy"
    shown = [key for key in ("ece", "corrupted_nll") if all(key in results[row.name].ensemble for row in rows)]
    heads = ["row", "members", "active parameters", "training, counted", "training, executed", "inference, executed"]
    heads += [
        f"{name} {who}" for name in (headline, "NLL") for who in ("best member", "mean member", "ensemble", "dense*")
    ]
    heads += [*(f"{key.replace('_', ' ')} ensemble".replace("ece", "ECE").replace("nll", "NLL") for key in shown)]
    heads += ["disagreement"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in rows:
        costs, found, dense = row.costs, results[row.name], results[f"dense:{row.name}"]
        unit = costs.dense
        cells = [
            row.name, str(found.members), f"{costs.ensemble.parameters.active:,}",
            f"{costs.ensemble.training.active / unit.executed:.2f}", f"{costs.ensemble.executed / unit.executed:.2f}",
            f"{costs.ensemble.inference_executed / unit.inference_executed:.2f}",
        ]  # fmt: skip
        for key in (headline, "nll"):
            cells += [written(each[key], key) for each in (found.best, found.mean, found.ensemble, dense.ensemble)]
        cells += [written(found.ensemble[key], key) for key in shown]
        cells.append(written(found.ensemble["disagreement"], "disagreement") if found.members > 1 else "")
        lines.append(_line(cells))
    return "\n".join(lines)


def units_in_words(rows: list[Row], seeds: int) -> str:
    """What the columns of costs are relative to, and what the stars mean."""
    costs = rows[0].costs
    return (
        f"Means over {seeds} seeds ± standard errors. Operations (FLOPs, a multiply-add is two) are relative to one "
        f"dense model trained {costs.dense_steps:,} steps: {costs.dense.executed:.3e} in training, "
        f"{costs.dense.inference_executed:.3e} for one prediction. *Counted* are those of active weights, what papers "
        "count; *executed* are those really computed. The best member is chosen on the reported data. "
        "*dense\\**: a dense model that executes as many operations in training as the row."
    )


def claims_table(verdicts: list[Verdict]) -> str:
    """Claims that held, that did not, and that these seeds cannot decide."""
    lines = [_line(["claim", "difference", "verdict"]), _line(["---"] * 3)]
    for verdict in sorted(verdicts, key=lambda each: ["held", "not held", "undecided"].index(each.word)):
        row, measure, _, than = verdict.claim
        where = f"{measure} of {row} less {than}: {written(verdict.difference, measure, sign=True)}"
        lines.append(_line([verdict.says, where, verdict.word]))
    return "\n".join(lines)


def written(value: Value, measure: str, *, sign: bool = False) -> str:
    """``0.812 ± 0.003``; accuracies in per cent."""
    factor, digits = (100.0, 2) if measure == "accuracy" else (1.0, DIGITS.get(measure, 3))
    text = f"{value.mean * factor:{'+' if sign else ''}.{digits}f}"
    return text if math.isnan(value.error) else f"{text} ± {value.error * factor:.{digits}f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
