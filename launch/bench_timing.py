"""Timings of variants side by side: every round runs each of them, every second round in reverse order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Times = dict[str, list[tuple[float, float]]]
"""Of each variant: (CPU seconds, wall seconds) of every round."""


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(variants: dict[str, Callable[[], None]], before: dict[str, Callable[[], None]], repeats: int) -> Times:
    """``repeats`` timings of each variant, interleaved in alternating order; ``before`` runs untimed ahead of one."""
    times: Times = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        names = list(variants) if repeat % 2 else list(reversed(variants))
        for name in names:
            before.get(name, lambda: None)()
            taken = timed(variants[name])
            if repeat:  # the first round warms up
                times[name].append(taken)
        print(f"\rround {repeat} of {repeats}", end="", flush=True)
    print("\r" + " " * 30 + "\r", end="")
    return times


def ratio(times: Times, top: str, bottom: str) -> dict[str, float]:
    """Median, least and largest of the CPU-second ratios within a repeat, and the median wall ratio."""
    cpu = [a[0] / b[0] for a, b in zip(times[top], times[bottom], strict=True)]
    wall = [a[1] / b[1] for a, b in zip(times[top], times[bottom], strict=True)]
    return {"cpu": statistics.median(cpu), "least": min(cpu), "largest": max(cpu), "wall": statistics.median(wall)}
