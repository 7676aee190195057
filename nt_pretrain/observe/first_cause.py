"""What another rank wrote into its log just before it left: usually the reason why all others fail."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

TAIL = 16_384
"""Bytes read from the end of a log."""
LINE = re.compile(r"^(?P<when>[\d-]{10} [\d:,]{12}) rank (?P<rank>\d+) (?P<level>[A-Z]+) [\w.]+: (?P<text>.*)$")
"""As :func:`nt_pretrain.observe.log.open_rank_log` writes it."""


def first_cause(logs: Path, *, since: float, is_consequence: Callable[[str], bool], wait_seconds: float = 2.0) -> str:
    """The earliest error in the logs of all ranks since ``since`` (Unix time) that follows from no other one.

    Waits up to ``wait_seconds`` for it to be written. Empty if there is none. Never raises for an unreadable file.

    Args:
        is_consequence: whether an error's first line only says that another rank has gone.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        found = sorted(each for path in sorted(logs.glob("rank_*.log")) for each in _errors(path, since))
        causes = [text for _, text in found if not is_consequence(text)]
        if causes or time.monotonic() >= deadline:
            return causes[0] if causes else ""
        time.sleep(0.1)


def _errors(path: Path, since: float) -> list[tuple[str, str]]:
    """(time, "rank 1: words") of each error; of a traceback its last line."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    begin = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    found: list[tuple[str, str]] = []
    inside = False
    for line in lines:
        if match := LINE.match(line):
            inside = match["level"] in ("ERROR", "CRITICAL") and match["when"] >= begin
            if inside:
                found.append((match["when"], f"rank {match['rank']}: {match['text']}"))
        elif inside and line.strip() and not line.startswith(" "):
            # The lines of a traceback are indented, but for its first and, with the error's own words, its last.
            when, text = found[-1]
            found[-1] = (when, f"{text.split(': ')[0]}: {line.strip()}")
    return found
