"""A part of a Markdown file that a command writes again, between two marks; everything else is left alone."""

from __future__ import annotations

from pathlib import Path

from nt_pretrain.observe.rundir import write_atomic


def put(path: Path, name: str, text: str) -> None:
    """Replace the part ``name`` of the file at ``path``, or add it at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    part = f"{begin}\n\n{text.strip()}\n\n{end}"
    if begin in before and end in before:
        head, rest = before.split(begin, 1)
        tail = rest.split(end, 1)[1]
        write_atomic(path, head + part + tail)
        return
    write_atomic(path, before + ("\n" if before else "") + part + "\n")
