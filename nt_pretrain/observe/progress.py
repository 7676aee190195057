"""How far a command is: a bar with the time left on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function to tell what is done, how much of it and of how much (0: unknown); shown on standard error.

    A new first word of what is done starts a new bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    terminal = sys.stderr.isatty()
    last = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        task = bar.add_task("starting", total=None)
        stage = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal last, stage
            if what.split()[0] != stage:
                stage = what.split()[0]
                bar.reset(task)
            bar.update(task, description=what, completed=done, total=total or None)
            if not terminal and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                left = bar.tasks[0].time_remaining
                of = f" of {total:,}" if total else ""
                print(f"{what}: {done:,}{of}" + (f", {left:.0f} s left" if left else ""), file=sys.stderr)

        yield show
