"""The picture of a run: losses, density and turnover over the optimizer steps. Needs matplotlib (extra ``report``).

Colours are Okabe and Ito's eight, which people with any colour vision tell apart; groups and heads also differ in
marker or line style, so that a black-and-white print still reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from nt_pretrain.observe.history import Row, event_steps, last, read_lines, series, suffixes
from nt_pretrain.observe.rundir import RunDir

BLACK, GREY = "#000000", "#7f7f7f"
# Okabe and Ito, "Color Universal Design", 2008; black is kept for the ensemble, yellow is left out on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")

Panel = Callable[[Axes, list[Row]], None]


def draw(rundir: RunDir, *, title: str) -> Path:
    """Draw ``report/curves.png`` from metrics.jsonl and events.jsonl.

    Raises:
        ValueError: when the run has no metrics yet.
    """
    rows = read_lines(rundir.metrics)
    if not rows:
        raise ValueError(f"{rundir.metrics} has no lines yet: nothing to draw before the first log step")
    panels: list[tuple[Panel, float]] = [(_losses, 2.0)]
    if series(rows, "sparsity/density")[0]:
        panels += [(_density, 1.0), (_turnover, 1.0)]
    figure = Figure(figsize=(11, 1.4 + 2.35 * sum(height for _, height in panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [height for _, height in panels]}
    )[:, 0]
    resumed = event_steps(rundir.events, "resume")
    for index, (axis, (panel, _)) in enumerate(zip(axes, panels, strict=True)):
        panel(axis, rows)
        if index == 0:
            _rug(axis, event_steps(rundir.events, "topology"))
        _finish(axis, resumed, name_resumes=index == 0)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", fontweight="bold")
    rundir.report.mkdir(parents=True, exist_ok=True)
    target = rundir.report / "curves.png"
    figure.savefig(target, dpi=130)
    return target


def _losses(axis: Axes, rows: list[Row]) -> None:
    for index, head in enumerate(suffixes(rows, "train/loss_head_")):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        steps, losses = series(rows, f"train/loss_head_{head}")
        axis.plot(steps, losses, dash, color=colour, linewidth=1.0, alpha=0.55, label=f"head {head}, training")
    for index, head in enumerate(suffixes(rows, "validation/loss_head_")):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        steps, losses = series(rows, f"validation/loss_head_{head}")
        axis.plot(
            steps,
            losses,
            color=colour,
            marker=marker,
            markersize=5.5,
            markeredgecolor="white",
            linewidth=1.4,
            label=f"head {head}, validation{_perplexity(losses)}",
        )
    steps, losses = series(rows, "validation/loss_ensemble")
    if steps:
        label = f"ensemble, validation{_perplexity(losses)}"
        axis.plot(steps, losses, color=BLACK, linewidth=2.4, marker=".", markersize=9, label=label)
    unigram = last(rows, "validation/unigram_perplexity")
    if unigram:
        label = f"unigram level: perplexity {unigram:,.1f}"
        axis.axhline(math.log(unigram), color=GREY, linestyle=(0, (6, 3)), linewidth=1.3, label=label)
    axis.set_ylabel("loss (nats per token)")


def _perplexity(losses: list[float]) -> str:
    return f": perplexity {math.exp(losses[-1]):,.1f}" if losses and losses[-1] < 20 else ""


def _rug(axis: Axes, updates: list[int]) -> None:
    """A short mark at the foot of the panel for every topology update."""
    if updates:
        axis.plot(
            updates,
            [0.012] * len(updates),
            "|",
            transform=axis.get_xaxis_transform(),
            color=BLACK,
            markersize=7,
            markeredgewidth=1.0,
            label="topology update",
        )


def _density(axis: Axes, rows: list[Row]) -> None:
    _groups(axis, rows, "sparsity/density_")
    steps, values = series(rows, "sparsity/density")
    axis.plot(steps, values, color=BLACK, linewidth=2.2, label="all sparse layers")
    axis.set_ylabel("density")
    low, high = axis.get_ylim()
    axis.set_ylim(max(low - 0.01, 0.0), min(high + 0.01, 1.02))


def _turnover(axis: Axes, rows: list[Row]) -> None:
    _groups(axis, rows, "sparsity/turnover_")
    steps, values = series(rows, "sparsity/turnover")
    axis.plot(steps, values, color=BLACK, linewidth=2.2, label="all sparse layers")
    steps, values = series(rows, "sparsity/prune_rate")
    if steps:
        axis.plot(
            steps, values, color=GREY, linestyle=(0, (6, 3)), linewidth=1.6, label="prune rate (largest possible)"
        )
    axis.set_ylabel("turnover at an update")
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axis.set_ylim(bottom=0)


def _groups(axis: Axes, rows: list[Row], prefix: str) -> None:
    for index, group in enumerate(suffixes(rows, prefix)):
        steps, values = series(rows, prefix + group)
        axis.plot(
            steps,
            values,
            DASHES[index % len(DASHES)],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markevery=max(len(steps) // 12, 1),
            markersize=5,
            markeredgecolor="white",
            linewidth=1.4,
            label=group,
        )


def _finish(axis: Axes, resumed: list[int], *, name_resumes: bool) -> None:
    for index, step in enumerate(resumed):
        label = "resumed from a checkpoint" if index == 0 and name_resumes else "_nolegend_"
        axis.axvline(step, color=BLACK, linestyle=":", linewidth=1.2, label=label, zorder=1)
    axis.grid(color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.margins(x=0.01)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
