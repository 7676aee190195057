"""docs/RUNDIR.md names the files and exit codes the code has."""

from __future__ import annotations

import re
from pathlib import Path

from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.rundir import RunDir
from tests.contract import ROOT

TEXT = (ROOT / "docs" / "RUNDIR.md").read_text(encoding="utf-8")


def test_the_tree_is_the_run_directory() -> None:
    block = TEXT.split("<!-- tree -->\n```text\n")[1].split("\n```")[0]
    named = {line.split()[0].rstrip("/") for line in block.splitlines()[1:]}
    rundir = RunDir("runs/demo")
    paths = {value.name for name, value in vars(rundir).items() if isinstance(value, Path) and name != "path"}
    assert named == paths


def test_the_table_lists_every_exit_code() -> None:
    listed = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| ([A-Z]+) \|", TEXT, flags=re.MULTILINE)}
    assert listed == {code.name: int(code) for code in ExitCode}
