"""The assignment problem, solved exactly: rows to columns, each once, with the least total cost.

The Hungarian method by shortest augmenting paths (Kuhn 1955; Jonker and Volgenant 1987), O(rows² columns), the inner
loop in numpy. scipy has the same; it is no dependency here for one function.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The column of every row, int64 [rows], for a ``cost`` [rows, columns] with at least as many columns as rows.

    Raises:
        ValueError: fewer columns than rows, or a cost that is no finite number.
    """
    rows, columns = cost.shape
    if rows > columns:
        raise ValueError(f"{rows} rows for {columns} columns: give the transpose")
    if not np.isfinite(cost).all():
        raise ValueError("a cost is no finite number")
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1, dtype=np.int64)
    for start in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1, dtype=np.int64)
        done = np.zeros(columns, dtype=bool)
        row, at, least = start, -1, 0.0
        while True:
            # Distances to all columns through the row reached last; then the nearest column not reached yet.
            reach = least + cost[row] - row_price[row] - column_price
            nearer = ~done & (reach < distance)
            distance[nearer], before[nearer] = reach[nearer], at
            at = int(np.argmin(np.where(done, np.inf, distance)))
            least = float(distance[at])
            done[at] = True
            if row_of[at] < 0:
                break
            row = int(row_of[at])
        reached = done & (row_of >= 0)
        row_price[row_of[reached]] += least - distance[reached]
        row_price[start] += least
        column_price[done] -= least - distance[done]
        while at >= 0:
            previous = int(before[at])
            row_of[at] = start if previous < 0 else row_of[previous]
            at = previous
    found = np.empty(rows, dtype=np.int64)
    taken = np.flatnonzero(row_of >= 0)
    found[row_of[taken]] = taken
    return found
