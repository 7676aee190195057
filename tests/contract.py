"""The layers of the import-linter contract in pyproject.toml, as a table of levels."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nt_pretrain"


def levels() -> dict[str, int]:
    """Level of every module or package the contract names; the lowest line is level 0."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers: list[str] = settings["contracts"][0]["layers"]
    table: dict[str, int] = {}
    for level, line in enumerate(reversed(layers)):
        for name in line.replace("|", ":").split(":"):
            table[name.strip().strip("()")] = level
    return table


def modules() -> list[str]:
    """Dotted names of all modules of nt_pretrain; an ``__init__.py`` holds only a docstring and is left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] != "__init__":
            found.append(".".join(parts))
    return found


def level_of(module: str, table: dict[str, int]) -> int | None:
    """Level of a module: that of the longest name in the contract that is the module or a package around it."""
    fitting = [name for name in table if module == name or module.startswith(f"{name}.")]
    return table[max(fitting, key=len)] if fitting else None


def path_of(module: str) -> Path:
    return ROOT / Path(*module.split(".")).with_suffix(".py")
