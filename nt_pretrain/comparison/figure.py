"""Quality against cost: one point a row, with its standard error, and the dense models between."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from nt_pretrain.comparison.grid import Row
from nt_pretrain.comparison.results import Result

MARKERS = "sDv^oPX"
"""As many as have no divisor in common with the 20 colours: no two rows look alike."""


def draw(rows: list[Row], results: dict[str, Result], path: Path, *, text: bool) -> Path:
    """NLL (perplexity of text) of every ensemble against the operations executed for it, relative to one dense run."""
    key = "perplexity" if text else "nll"
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    dense = {row.reference: results[f"dense:{row.name}"].ensemble[key] for row in rows}
    steps = sorted(dense)
    unit = rows[0].costs.dense_steps
    axes.errorbar(
        [each / unit for each in steps],
        [dense[each].mean for each in steps],
        yerr=[_bar(dense[each].error) for each in steps],
        color="0.6",
        marker="o",
        markersize=3,
        label="one dense model, trained longer or shorter",
    )
    colours = plt.get_cmap("tab20")
    for number, row in enumerate(rows, start=1):
        value = results[row.name].ensemble[key]
        cost = row.costs.ensemble.executed / row.costs.dense.executed
        axes.errorbar(
            cost,
            value.mean,
            yerr=_bar(value.error),
            marker=MARKERS[number % len(MARKERS)],
            color=colours(number % 20),
            label=f"{number} {row.name}",
            linestyle="",
        )
        axes.annotate(str(number), (cost, value.mean), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("operations executed in training, relative to one dense run")
    axes.set_ylabel("perplexity of the ensemble" if text else "NLL of the ensemble (nats)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _bar(error: float) -> float:
    return 0.0 if math.isnan(error) else error
