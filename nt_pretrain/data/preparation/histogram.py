"""Sizes as a chart of characters."""

from __future__ import annotations

import numpy as np

BAR = 40
"""Characters of the longest bar."""


def histogram(sizes: np.ndarray) -> list[str]:
    """Lines with the number of sizes between powers of two."""
    powers = np.floor(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = {power: int((powers == power).sum()) for power in range(int(powers.min()), int(powers.max()) + 1)}
    most = max(counts.values())
    return [
        f"  {2**power:>13,} to {2 ** (power + 1) - 1:>13,}  {count:>11,}  {'#' * -(-count * BAR // most)}"
        for power, count in counts.items()
    ]
