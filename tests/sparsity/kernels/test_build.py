"""Building once for all processes, and what is said where it cannot be done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

TWO_PRODUCTS = """
import torch
from nt_pretrain.sparsity.kernels.layout import layout_of_table
from nt_pretrain.sparsity.kernels.linear import block_linear
layout = layout_of_table(torch.ones(2, 1, dtype=torch.bool), 32, 16, 16)
for _ in range(2):
    print(block_linear(torch.ones(1, 16), torch.ones(layout.shape), layout).sum().item())
"""


def test_two_processes_build_once(builders: list[tuple[int, str, str]], library: None) -> None:
    assert [code for code, _, _ in builders] == [0, 0]
    assert builders[0][1] == builders[1][1] and builders[0][1].startswith("ready: ")
    said = [errors.count("compiling the sparse kernels") for _, _, errors in builders]
    assert sorted(said) == [0, 1]


@pytest.mark.parametrize(
    "compiler, words",
    [("/nowhere/c++", "there is no C++ compiler '/nowhere/c++'; install g++"), ("false", "compiling them failed")],
)
def test_without_a_compiler_plain_torch_says_so_once(tmp_path: Path, compiler: str, words: str) -> None:
    environment = {**os.environ, "CXX": compiler, "NT_PRETRAIN_KERNELS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_PRODUCTS], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["512.0", "512.0"]
    assert done.stderr.count("sparse products run in plain torch") == 1 and words in done.stderr
    assert not list(tmp_path.rglob("complete"))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "nt_pretrain.sparsity.kernels.build"],
        cwd=ROOT, env={**os.environ, "NT_PRETRAIN_KERNELS": str(tmp_path / "file")}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be used" in done.stderr and "NT_PRETRAIN_KERNELS" in done.stderr and "Traceback" not in done.stderr
