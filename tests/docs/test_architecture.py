"""The diagram in docs/ARCHITECTURE.md tells the truth."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from tests.contract import PACKAGE, ROOT, level_of, levels, modules

LINE = re.compile(r"^(?P<indent> *)(?P<path>[\w./]+)(?: +(?P<level>\d))?(?: +(?P<names>.+))?$")
MORE = re.compile(r"^ {20,}(?P<names>\w.*)$")
"""A line that goes on with the names of the one above."""


@dataclass(frozen=True)
class Entry:
    path: str
    level: int | None
    names: tuple[str, ...]


def diagram() -> list[Entry]:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = text.split("<!-- diagram -->\n```text\n")[1].split("\n```")[0]
    entries: list[Entry] = []
    parent = ""
    for line in block.splitlines():
        if more := MORE.match(line):
            last = entries.pop()
            entries.append(replace(last, names=last.names + _names(more["names"])))
            continue
        match = LINE.match(line)
        assert match, f"docs/ARCHITECTURE.md: a line of the diagram is not understood: {line!r}"
        inside = bool(match["indent"])
        if not inside:
            parent = match["path"]
        path = (parent if inside else "") + match["path"]
        entries.append(Entry(path, int(match["level"]) if match["level"] else None, _names(match["names"])))
    return entries


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split("·") if name.strip())


ENTRIES = diagram()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_what_is_named_exists(entry: Entry) -> None:
    path = ROOT / entry.path
    assert path.is_dir() if entry.path.endswith("/") else path.is_file(), f"{entry.path} does not exist"
    for name in entry.names:
        assert (path / f"{name}.py").is_file() or (path / name).is_dir(), f"{entry.path} has no {name}"


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.path.startswith("nt_pretrain/") and e.level is not None])
def test_levels_are_those_of_the_contract(entry: Entry) -> None:
    table = levels()
    package = entry.path.rstrip("/").removesuffix(".py").replace("/", ".")
    for module in [f"{package}.{name}" for name in entry.names] or [package]:
        assert level_of(module, table) == entry.level, f"{module}: the contract and docs/ARCHITECTURE.md disagree"


def test_no_folder_is_missing() -> None:
    named = {entry.path for entry in ENTRIES}
    there = {f"nt_pretrain/{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {f"nt_pretrain/{path.name}" for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert there <= named
    launchers = next(entry for entry in ENTRIES if entry.path == "launch/").names
    assert {path.stem for path in (ROOT / "launch").glob("*.py")} <= set(launchers)


def test_every_module_stands_in_the_diagram_once() -> None:
    named = [
        module
        for entry in ENTRIES
        if entry.path.startswith("nt_pretrain/") and entry.level is not None
        for base in [entry.path.rstrip("/").removesuffix(".py").replace("/", ".")]
        for module in ([f"{base}.{name}" for name in entry.names] or [base])
    ]
    assert sorted(named) == sorted(modules())


def test_the_command_lines_stand_above_everything() -> None:
    (launch,) = [entry for entry in ENTRIES if entry.path == "launch/"]
    assert launch.level == max(levels().values()) + 1
    assert modules()
