"""What a run ran on: versions, hardware, code state, torchrun's world. No other environment variables: no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from nt_pretrain.observe.rundir import timestamp

PACKAGES = (
    "nt-pretrain",
    "torch",
    "numpy",
    "pydantic",
    "webdataset",
    "sentencepiece",
    "tensorboard",
    "safetensors",
    "triton",
)
# torchrun sets these; everything else of the environment stays out of the file because it may hold tokens.
TORCHRUN = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "OMP_NUM_THREADS")


def collect() -> dict[str, Any]:
    """Facts for environment.json, JSON-able. Takes some milliseconds (it asks git)."""
    return {
        "written": timestamp(),
        "command": sys.argv,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git(),
        "hardware": _hardware(),
        "torchrun": {name: os.environ[name] for name in TORCHRUN if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the code, and whether files differ from it; None outside a clone or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git_output(root, "rev-parse", "HEAD")
    changes = _git_output(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "changed_files": bool(changes)}


def _git_output(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
