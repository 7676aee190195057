"""How often Grover's search would ask for an energy: a figure, nothing is simulated.

Source: Grover 1996 (arXiv quant-ph/9605043); the number of calls is that of Boyer et al. 1998 (quant-ph/9605034). It
takes the threshold for "good" as known, and an oracle that computes an energy in superposition.
"""

from __future__ import annotations

import math


def oracle_calls(masks: int, good: int) -> int:
    """Calls after which a measurement is almost surely one of ``good`` of ``masks``."""
    return max(1, round(math.pi / 4 * math.sqrt(masks / good)))


def expected_draws(masks: int, good: int) -> float:
    """Masks that a uniform draw looks at until it meets a good one, on average."""
    return masks / good
