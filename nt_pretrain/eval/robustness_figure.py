"""The figure of Ovadia et al. (NeurIPS 2019): accuracy and ECE by severity. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nt_pretrain.eval.figures import title_of
from nt_pretrain.eval.harms import Kind
from nt_pretrain.eval.robustness import Robustness, severities
from nt_pretrain.eval.robustness_table import TITLES
from nt_pretrain.observe.curves import BLACK, COLOURS, MARKERS

MEMBERS = {"mean_head": COLOURS[0], "ensemble": BLACK, "ensemble_logit": COLOURS[1]}


def draw_robustness(robustness: Robustness, target: Path) -> Path:
    """Accuracy and ECE of mean head and ensembles by severity, 0 without harm: the median over the harms of a kind,
    bars from the first to the third quartile. One row of panels for each kind that was measured.

    Raises:
        ValueError: no harm was measured.
    """
    kinds = robustness.kinds
    if not kinds:
        raise ValueError(f"{target}: no harm was measured, so there is no figure of robustness to draw")
    figure = Figure(figsize=(9.6, 3.4 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(kinds), 2, squeeze=False)
    for axes, kind in zip(rows, kinds, strict=True):
        for axis, value, label in zip(axes, ("accuracy", "ece"), ("accuracy", "ECE"), strict=True):
            _panel(axis, robustness, kind, value)
            axis.set(ylabel=label, xlabel="severity")
            axis.set_title(TITLES[kind], fontsize=10)
    rows[0][0].legend(frameon=False, fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    return target


def quartiles(robustness: Robustness, kind: Kind, member: str, value: str) -> list[tuple[float, float, float]]:
    """First quartile, median and third quartile over the harms of a kind, for severity 0 (no harm) and each measured;
    between two values linearly.
    """
    clean = robustness.clean[member][value]
    found = [(clean, clean, clean)]
    for severity in severities(robustness, kind):
        values = [
            each[member][value] for harm, each in robustness.harmed if harm.kind == kind and harm.severity == severity
        ]
        low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
        found.append((low, middle, high))
    return found


def _panel(axis: Axes, robustness: Robustness, kind: Kind, value: str) -> None:
    at = [0, *severities(robustness, kind)]
    for index, (member, colour) in enumerate(MEMBERS.items()):
        rows = quartiles(robustness, kind, member, value)
        middle = [row[1] for row in rows]
        bars = [[row[1] - row[0] for row in rows], [row[2] - row[1] for row in rows]]
        # Side by side: at the same place the bars of one member would hide another's.
        places = [each + 0.12 * (index - 1) for each in at]
        axis.errorbar(
            places, middle, yerr=bars, color=colour, marker=MARKERS[index], markersize=5, linewidth=1.4, capsize=3,
            label=title_of(member),
        )  # fmt: skip
    axis.set_xticks(at)
    axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
