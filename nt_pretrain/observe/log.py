"""What a person reads while a run goes: rank 0's aligned lines on the console, and every rank's own log file."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import rich.console
import rich.text

from nt_pretrain.observe.history import suffixes

EVENT_STYLE = {"warning": "yellow", "error": "bold red", "info": "cyan"}


def open_rank_log(path: Path, rank: int, *, level: int = logging.INFO) -> None:
    """Send Python's logging of this process to ``path`` (appending), with time, rank and level in front of each line.

    Calling it again moves the log; there is never more than one of our handlers.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.get_name() == "nt_pretrain.rank_log"]:
        root.removeHandler(handler)
        handler.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.set_name("nt_pretrain.rank_log")
    file.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"))
    root.addHandler(file)
    root.setLevel(level)


class Console:
    """Lines on standard output from rank 0; the same lines go to the log file of every rank that prints them.

    Plain text unless the stream is a terminal; colour only marks events, and NO_COLOR turns it off. Lines are never
    wrapped or cut, so that a file holds one line per log step.

    Args:
        rank: only rank 0 prints; the others only log.
        total_steps, world: for ``step 12/100`` and the samples per second of one device.
        device: "gpu" or "rank", the word after ``tok/s/``.
        samples: "tokens", "pictures" or "rows".
        memory_total: bytes; memory is shown as a share of it, or in GB where it is None.
    """

    def __init__(
        self,
        rank: int,
        *,
        total_steps: int,
        world: int,
        device: str,
        samples: str = "tokens",
        memory_total: int | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._rank = rank
        self._total_steps, self._world, self._device, self._memory_total = total_steps, world, device, memory_total
        self._samples = samples
        self._turnover: float | None = None
        # No highlighting, markup or emoji: what is printed is what was given.
        self._out = rich.console.Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
        self._log = logging.getLogger("nt_pretrain")

    def step(self, step: int, values: Mapping[str, float], *, eta_seconds: float | None) -> None:
        """The line of a log step. Turnover stays what it was at the last topology update, which few log steps hit."""
        self._turnover = values.get("sparsity/turnover", self._turnover)
        shown = dict(values)
        if self._turnover is not None:
            shown["sparsity/turnover"] = self._turnover
        self._print(
            format_step(
                step,
                self._total_steps,
                shown,
                world=self._world,
                device=self._device,
                samples=self._samples,
                memory_total=self._memory_total,
                eta_seconds=eta_seconds,
            )
        )

    def event(self, text: str, *, level: str = "info") -> None:
        """One event on its own line; ``level`` is info, warning or error."""
        self._print(text, style=EVENT_STYLE[level], level=level)

    def plain(self, text: str) -> None:
        """Text without colour, such as the summary of a run at its start; may have several lines."""
        self._print(text)

    def _print(self, text: str, *, style: str = "", level: str = "info") -> None:
        self._log.log(getattr(logging, level.upper()), text)
        if self._rank == 0:
            self._out.print(rich.text.Text(text, style=style), soft_wrap=True)
            self._out.file.flush()


def format_step(
    step: int,
    total_steps: int,
    values: Mapping[str, float],
    *,
    world: int,
    device: str,
    samples: str = "tokens",
    memory_total: int | None,
    eta_seconds: float | None,
) -> str:
    """One aligned line from metrics (see docs/RUNDIR.md for the keys); what is not measured in this run is left out."""
    width = len(f"{total_steps:,}")
    parts = [f"step {step:>{width},}/{total_steps:,}", f"loss {_fixed(values.get('train/loss'), 3, 6)}"]
    heads = [values[f"train/loss_head_{name}"] for name in suffixes([dict(values)], "train/loss_head_")]
    if len(heads) > 1:
        parts.append("(heads " + " ".join(_fixed(loss, 2, 5) for loss in heads) + ")")
    parts.append(f"grad {_fixed(values.get('optim/grad_norm'), 2, 5)}")
    parts.append(f"lr {_scientific(values.get('optim/lr'))}")
    speed = values.get(f"throughput/{samples}_per_second")
    short = {"tokens": "tok", "pictures": "img", "rows": "row"}[samples]
    parts.append(f"{_count(None if speed is None else speed / world)} {short}/s/{device}")
    if "throughput/mfu" in values:
        parts.append(f"mfu {_percent(values['throughput/mfu'], 0, 3)}")
    parts.append(f"data {_percent(values.get('time/data_fraction'), 1, 5)}")
    parts.append(f"mem {_memory(values.get('memory/peak_bytes'), memory_total)}")
    if "sparsity/density" in values:
        parts.append(f"density {_fixed(values['sparsity/density'], 2, 4)}")
        parts.append(f"turnover {_percent(values.get('sparsity/turnover'), 1, 5)}")
    parts.append(f"eta {duration(eta_seconds)}")
    return " ".join(parts)


def duration(seconds: float | None) -> str:
    """``45s``, ``4m10s``, ``5h12m`` or ``3d04h``; ``-`` where it is not known.

    >>> duration(18750)
    '5h12m'
    """
    if seconds is None or not math.isfinite(seconds):
        return "-"
    total = max(round(seconds), 0)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    minutes = total // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02d}h"


def _fixed(value: float | None, digits: int, width: int) -> str:
    return "-".rjust(width) if value is None else f"{value:{width}.{digits}f}"


def _percent(value: float | None, digits: int, width: int) -> str:
    return "-".rjust(width) if value is None else f"{100 * value:{width - 1}.{digits}f}%"


def _scientific(value: float | None) -> str:
    if value is None:
        return "-".rjust(6)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value else "0.0e-0"  # zero as wide as the rest


def _count(value: float | None) -> str:
    """Six characters: `` 41.2k``, ``935   ``."""
    if value is None:
        return "-".rjust(6)
    if value < 1000:
        return f"{value:6.0f}"
    return f"{value / 1e3:5.1f}k" if value < 999_950 else f"{value / 1e6:5.2f}M"


def _memory(used: float | None, total: int | None) -> str:
    if used is None:
        return "-".rjust(5)
    return _percent(used / total, 0, 4) if total else f"{used / 1e9:.2f}GB"
