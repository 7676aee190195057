"""Pictures of an evaluation. Needs matplotlib (extra ``report``), so it is imported only where they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nt_pretrain.eval.calibration import BINS, equal_width_error, reliability
from nt_pretrain.eval.classification import ClassificationSums
from nt_pretrain.eval.members import head_names, label_of, member_names
from nt_pretrain.eval.selective import area_under_risk_coverage, risk_coverage
from nt_pretrain.observe.curves import BLACK, COLOURS, DASHES, GREY


def draw_reliability(sums: ClassificationSums, target: Path, heads: Sequence[str] = ()) -> Path:
    """Reliability diagrams (DeGroot and Fienberg, 1983) of heads and ensembles: accuracy over confidence in 15 bins,
    the share of samples of a bin as grey bars. Below the diagonal a member is too sure.

    Args:
        heads: their names; () for those of one model.
    """
    names = _names(sums, heads)
    figure, axes = _grid(len(names), width=3.1, height=3.3)
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        points = reliability(sums.bins[index])
        samples = max(sum(count for _, _, count in points), 1)
        share = sums.bins[index, :, 0].double() / samples
        axis.bar([(b + 0.5) / BINS for b in range(BINS)], share.tolist(), width=0.9 / BINS, color="#d9d9d9", zorder=1)
        axis.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (6, 3)), linewidth=1.2, zorder=2)
        colour = BLACK if name.startswith("ensemble") else COLOURS[index % len(COLOURS)]
        axis.plot([p for p, _, _ in points], [a for _, a, _ in points], "o-", color=colour, markersize=4, zorder=3)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axis.set_title(f"{title_of(name)}\nECE {equal_width_error(sums.bins[index]):.4f}", fontsize=10)
    return _save(figure, target)


def draw_risk_coverage(sums: ClassificationSums, target: Path, heads: Sequence[str] = ()) -> Path:
    """Risk over coverage of heads and ensembles, with the area under each curve; ``heads`` as above."""
    figure, (axis,) = _grid(1, width=6.5, height=4.2)
    for index, name in enumerate(_names(sums, heads)):
        coverage, risk = risk_coverage(sums.confidences[index])
        area = area_under_risk_coverage(sums.confidences[index])
        ensemble = name.startswith("ensemble")
        axis.plot(
            coverage.tolist(),
            risk.tolist(),
            DASHES[1] if name == "ensemble_logit" else DASHES[index // len(COLOURS) % len(DASHES)],
            color=BLACK if ensemble else COLOURS[index % len(COLOURS)],
            linewidth=2.0 if ensemble else 1.2,
            label=f"{title_of(name)}: AURC {area:.4f}",
        )
    axis.set(xlim=(0, 1), xlabel="coverage (share answered, surest first)", ylabel="risk (share of these wrong)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=9)
    return _save(figure, target)


def draw_pairs(
    matrix: Tensor, target: Path, *, title: str, expected: Tensor | None = None, names: Sequence[str] = ()
) -> Path:
    """A heat map of a value of every pair of heads, fp64 [M, M] between 0 and 1; ``expected`` stands below it in
    brackets. For disagreement and for the overlap of masks. ``names`` stand along the sides; () for numbers.
    """
    heads = len(matrix)
    figure, (axis,) = _grid(1, width=1.8 + 0.75 * heads, height=1.4 + 0.7 * heads)
    values = matrix.masked_fill(torch.eye(heads, dtype=torch.bool, device=matrix.device), float("nan"))
    image = axis.imshow(values.cpu().numpy(), cmap="cividis", vmin=0.0)
    largest = float(values.nan_to_num(0.0).max())
    for row in range(heads):
        for column in range(heads):
            if row != column:
                text = f"{float(matrix[row, column]):.3f}"
                text += f"\n({float(expected[row, column]):.3f})" if expected is not None else ""
                dark = float(matrix[row, column]) < 0.6 * largest
                axis.text(column, row, text, ha="center", va="center", color="white" if dark else BLACK, fontsize=8)
    axis.set_xticks(range(heads))
    axis.set_yticks(range(heads))
    if names:
        labels = [label_of(name) for name in names]
        axis.set_xticklabels(labels, rotation=45, ha="right", fontsize=8)
        axis.set_yticklabels(labels, fontsize=8)
    else:
        axis.set(xlabel="head", ylabel="head")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return _save(figure, target)


def draw_heads_used(rows: list[dict[str, float]], target: Path) -> Path:
    """NLL and accuracy against the number of heads used, with the range over subsets of that size."""
    figure, axes = _grid(2, width=4.2, height=3.4)
    heads = [row["heads"] for row in rows]
    for axis, name, label in zip(axes, ("nll", "accuracy"), ("NLL (nats)", "accuracy"), strict=True):
        low, high = [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows]
        axis.fill_between(heads, low, high, color=COLOURS[4], alpha=0.35, label="range over subsets")
        axis.plot(heads, [row[name] for row in rows], "o-", color=BLACK, label="mean over subsets")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="heads used", ylabel=label)
    axes[0].legend(frameon=False, fontsize=9)
    return _save(figure, target)


def title_of(name: str) -> str:
    """A member's name for people."""
    if name == "ensemble":
        return "ensemble, mean probability"
    return "ensemble, mean logit" if name == "ensemble_logit" else label_of(name)


def _names(sums: ClassificationSums, heads: Sequence[str]) -> list[str]:
    return member_names(heads or head_names(len(sums.correct) - 2))


def _grid(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, 5)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes[:count]


def _save(figure: Figure, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    return target
