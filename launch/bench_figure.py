"""The ratios of a benchmark as one picture: medians with their spread. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SPREAD = {"cpu", "least", "largest"}
NAMES = ("model", "precision", "layer", "density", "block", "name")
"""What says which of several results a ratio is of."""


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Write every ratio of ``results``, those that ``bench_timing.ratio`` made, to ``path`` (png, svg or pdf).

    Raises:
        ValueError: there are none, or matplotlib knows no such format.
    """
    found = [each for result in results for each in ratios(result, ())]
    if not found:
        raise ValueError("these results hold no ratios to draw")
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(found)), layout="constrained")
    axes = figure.subplots()
    for at, (_, ratio) in enumerate(found):
        axes.plot([ratio["least"], ratio["largest"]], [at, at], color="tab:blue", linewidth=2)
        axes.plot(ratio["cpu"], at, "o", color="tab:blue")
    axes.axvline(1.0, color="grey", linewidth=1)
    axes.set_yticks(range(len(found)), [label for label, _ in found])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ratio of CPU seconds: median, least to largest of the rounds")
    figure.savefig(path, dpi=150)


def ratios(found: Any, words: tuple[str, ...]) -> Iterator[tuple[str, dict[str, float]]]:
    """Label and ratio of everything in ``found``, however deep."""
    if isinstance(found, dict):
        if set(found) >= SPREAD:
            yield " ".join(words), found
            return
        own = (*words, *(str(found[name]) for name in NAMES if isinstance(found.get(name), str | float | int)))
        for key, value in found.items():
            yield from ratios(value, own if key in ("ratio", "ratios", "rows", "parts") else (*own, str(key)))
    elif isinstance(found, list):
        for each in found:
            yield from ratios(each, words)
