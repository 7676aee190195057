"""The diagram in docs/ARCHITECTURE.md tells the truth."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.contract import PACKAGE, ROOT, level_of, levels, modules

LINE = re.compile(r"^(?P<indent> *)(?P<path>[\w./]+)(?: +(?P<level>\d))?(?: +(?P<names>.+))?$")


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
        match = LINE.match(line)
        assert match, f"docs/ARCHITECTURE.md: a line of the diagram is not understood: {line!r}"
        inside = bool(match["indent"])
        if not inside:
            parent = match["path"]
        names = tuple(name.strip() for name in (match["names"] or "").split("·") if name.strip())
        path = (parent if inside else "") + match["path"]
        entries.append(Entry(path, int(match["level"]) if match["level"] else None, names))
    return entries


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


def test_the_command_lines_stand_above_everything() -> None:
    (launch,) = [entry for entry in ENTRIES if entry.path == "launch/"]
    assert launch.level == max(levels().values()) + 1
    assert modules()
