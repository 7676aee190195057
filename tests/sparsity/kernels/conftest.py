"""The kernels, compiled once per session by two processes that begin together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nt_pretrain.sparsity.kernels import build

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def builders(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of two processes that built into one empty folder at the same time."""
    os.environ[build.FOLDER_VARIABLE] = str(tmp_path_factory.mktemp("kernels"))
    command = [sys.executable, "-m", "nt_pretrain.sparsity.kernels.build"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    return [(process.returncode, *told) for process in running for told in [process.communicate(timeout=280)]]


@pytest.fixture(scope="session")
def library(builders: list[tuple[int, str, str]]) -> None:
    """The compiled kernels are loaded; skipped with the reason where they cannot be built."""
    if builders[0][0]:
        pytest.skip(builders[0][2])
    build.load()
    build.compiled.cache_clear()


@pytest.fixture(params=["AVX-512 bfloat16", "AVX-512", "portable", "torch"])
def path(request: pytest.FixtureRequest, library: None) -> Iterator[bool]:
    """True for compiled kernels, at each level of instructions that this processor has; False for plain torch."""
    wanted = {"AVX-512 bfloat16": 2, "AVX-512": 1, "portable": 0, "torch": 2}[request.param]
    if torch.ops.nt_sparse.limit_level(wanted) != wanted and request.param != "torch":
        torch.ops.nt_sparse.limit_level(2)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param != "torch"
    torch.ops.nt_sparse.limit_level(2)
