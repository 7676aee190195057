"""Why a layer takes the time it takes: counted operations and bytes against what this machine was measured to do.

The roofline of Williams, Waterman and Patterson (Communications of the ACM 52(4), 2009): a product can be no faster
than its operations at the peak of arithmetic and its bytes at the peak of memory, each operand moved once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ROUNDS = 7


@dataclass(frozen=True)
class Peaks:
    """Operations and bytes a second of one core."""

    flops: float
    bytes: float


def peaks(dtype: torch.dtype) -> Peaks:
    """Measured now: the best of some rounds of a square product of ``dtype``, and of a copy that no cache holds."""
    side, elements = 1536, 2**26
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    product = torch.empty(side, side, dtype=dtype)
    source, target = torch.ones(elements), torch.empty(elements)
    return Peaks(
        2 * side**3 / _best(lambda: torch.mm(a, b, out=product)), 2 * 4 * elements / _best(lambda: target.copy_(source))
    )


def _best(run: Callable[[], Any]) -> float:
    """CPU seconds, of all threads together: beside other work this clock is the one that tells."""
    taken = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        run()
        taken.append(time.process_time() - begin)
    return min(taken)


def work(tokens: int, inputs: int, outputs: int, density: float, element: int) -> tuple[float, float]:
    """Operations, and bytes at least, of forward, gradient of the input and gradient of the weight."""
    weights = density * inputs * outputs
    maps = tokens * (inputs + outputs)
    # Each product reads or writes both maps and the active weights once; gradients of weights are fp32.
    return 6.0 * tokens * weights, 3.0 * element * maps + (2 * element + 4) * weights


def explain(found: dict[str, Any], dtype: torch.dtype) -> None:
    """Print the roofline of every row of a table of the verb `layer`."""
    measured = peaks(dtype)
    element = torch.finfo(dtype).bits // 8
    print(
        f"roofline of one core: peak {measured.flops / 1e9:.0f} GFLOP/s (square product), "
        f"memory {measured.bytes / 1e9:.1f} GB/s "
        f"(copy), best of {ROUNDS}; ridge at {measured.flops / measured.bytes:.0f} FLOP/byte"
    )
    print("  layer      density    GFLOP       MB  FLOP/byte  bound by    least ms  measured ms  of the bound  GFLOP/s")
    for row in found["rows"]:
        density = row.get("density", 1.0)
        flops, size = work(found["tokens"], found["inputs"], found["outputs"], density, element)
        arithmetic, memory = flops / measured.flops, size / measured.bytes
        least, taken = 1e3 * max(arithmetic, memory), row["cpu_ms"]
        bound = "arithmetic" if arithmetic >= memory else "memory"
        print(
            f"  {row['layer']:9s}  {density:7.4f} {flops / 1e9:8.1f} {size / 1e6:8.1f} {flops / size:10.0f}  "
            f"{bound:10s}{least:10.1f} {taken:12.1f} {least / taken:13.0%} {flops / taken / 1e6:8.0f}"
        )
    rates = [6.0 * found["tokens"] * found["inputs"] * found["outputs"] * row.get("density", 1.0) / row["cpu_ms"] / 1e6
             for row in found["rows"] if row["layer"] != "dense"]  # fmt: skip
    print(f"  sparse layers reach {statistics.median(rates) * 1e9 / measured.flops:.0%} of the peak (median)")
