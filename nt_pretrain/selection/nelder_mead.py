"""Minimum of a function of a few numbers without derivatives (Nelder and Mead 1965)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def nelder_mead(
    function: Callable[[np.ndarray], float], start: np.ndarray, *, step: float, evaluations: int
) -> tuple[np.ndarray, float]:
    """The best point [d] found and its value.

    Args:
        start: [d]; the first simplex has it and, for each coordinate, the point ``step`` away.
        evaluations: of ``function``, at most (a last move may take d more).
    """
    points = [start, *(start + step * unit for unit in np.eye(len(start)))]
    values = [function(point) for point in points]
    count = len(values)
    while count < evaluations:
        order = np.argsort(values, kind="stable")
        points, values = [points[i] for i in order], [values[i] for i in order]
        centre = np.mean(points[:-1], axis=0)
        reflected = centre + (centre - points[-1])
        value = function(reflected)
        count += 1
        if value < values[0]:
            expanded = centre + 2.0 * (centre - points[-1])
            further = function(expanded)
            count += 1
            points[-1], values[-1] = (expanded, further) if further < value else (reflected, value)
        elif value < values[-2]:
            points[-1], values[-1] = reflected, value
        else:
            towards = reflected if value < values[-1] else points[-1]
            contracted = centre + 0.5 * (towards - centre)
            nearer = function(contracted)
            count += 1
            if nearer < min(value, values[-1]):
                points[-1], values[-1] = contracted, nearer
            else:
                points = [points[0], *(points[0] + 0.5 * (point - points[0]) for point in points[1:])]
                values = [values[0], *(function(point) for point in points[1:])]
                count += len(points) - 1
    best = int(np.argmin(values))
    return points[best], float(values[best])
