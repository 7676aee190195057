"""The contract of layers is complete, and the lowest layers know nothing of processes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.contract import PACKAGE, level_of, levels, modules, path_of

TABLE = levels()


@pytest.mark.parametrize("module", modules())
def test_every_module_stands_in_the_contract(module: str) -> None:
    assert level_of(module, TABLE) is not None, (
        f"{module} is in no layer: add it to the line of its level under [tool.importlinter] in pyproject.toml"
    )


def test_package_files_hold_no_code() -> None:
    # import-linter's layers name modules, so code in the __init__.py of a package with two levels would escape them.
    for path in PACKAGE.rglob("__init__.py"):
        imports = [node for node in ast.walk(_parse(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not imports, f"{path} imports something; import from the module itself instead"


@pytest.mark.parametrize("module", [name for name in modules() if (level_of(name, TABLE) or 0) <= 1])
def test_low_levels_do_not_know_processes(module: str) -> None:
    found = sorted(name for name in _uses(_parse(path_of(module))) if name.startswith("torch.distributed"))
    assert not found, f"{module} is below level 2 and uses {found[0]}: that belongs into parallel/ or above"


@pytest.mark.parametrize("module", modules())
def test_nothing_imports_the_command_lines(module: str) -> None:
    assert not [name for name in _uses(_parse(path_of(module))) if name.split(".")[0] == "launch"]


@pytest.mark.parametrize(
    "code",
    [
        "import torch.distributed as dist",
        "from torch.distributed.tensor import DTensor",
        "from torch import distributed",
        "import torch\ndef f():\n    torch.distributed.barrier()",
    ],
)
def test_the_search_sees_every_way_to_use_it(code: str) -> None:
    assert any(name.startswith("torch.distributed") for name in _uses(ast.parse(code)))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _uses(tree: ast.Module) -> set[str]:
    """Dotted names a module imports or reaches through attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names
