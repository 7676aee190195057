"""The compiled kernels: built on first use, or ahead by ``make kernels``, and kept for later runs.

They need Linux, a C++ compiler and ninja. Without them the same products run in plain torch, slower.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = ("words.h", "tiles.h", "block.cpp", "conv.cpp", "csr.cpp", "few_tokens.cpp")
NAME = "nt_sparse_kernels"
FLAGS = ("-O3", "-fopenmp", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized")
FOLDER_VARIABLE = "NT_PRETRAIN_KERNELS"


class BuildError(RuntimeError):
    """Why there are no compiled kernels here."""


def folder() -> Path:
    """Where the library of these sources and this torch is kept; ``NT_PRETRAIN_KERNELS`` names the folder above."""
    content = hashlib.sha256("\0".join((torch.__version__, *FLAGS)).encode())
    for name in SOURCES:
        content.update((HERE / name).read_bytes())
    parent = os.environ.get(FOLDER_VARIABLE) or "~/.cache/nt_pretrain/kernels"
    return Path(parent).expanduser() / content.hexdigest()[:16]


@functools.cache
def compiled() -> bool:
    """Whether the kernels are loaded, after building them where that is needed. The reason is told once if not."""
    try:
        load()
    except BuildError as error:
        print(
            f"sparse products run in plain torch, with the same numbers but slower: {error}",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True


@functools.cache
def load() -> Path:
    """Load the library as ``torch.ops.nt_sparse``, building it if it is not there yet; returns its file.

    Several processes of a machine build it once: the others wait. A process loads it once.

    Raises:
        BuildError: it cannot be built or loaded, with the reason and what to do.
    """
    try:
        library = _built(folder())
    except OSError as error:
        raise BuildError(
            f"{folder()} cannot be used ({error}); name a folder to write to in {FOLDER_VARIABLE}"
        ) from error
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise BuildError(f"{library} cannot be loaded ({error}); delete {library.parent} to build it anew") from error
    return library


def _built(place: Path) -> Path:
    library, done = place / f"{NAME}.so", place / "complete"
    if done.exists():
        return library
    _check_tools()
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / "building"):
        if not done.exists():  # else: another process has built it meanwhile
            _build(place)
            done.touch()
    return library


def _check_tools() -> None:
    if sys.platform != "linux":
        raise BuildError(f"the compiled kernels are for Linux, this is {sys.platform}")
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        raise BuildError(f"there is no C++ compiler {compiler!r}; install g++ (Debian and Ubuntu: apt install g++)")
    if shutil.which("ninja", path=_search_path()) is None:
        raise BuildError("there is no ninja; install it with: pip install ninja")


def _search_path() -> str:
    # An environment that is used without being activated keeps its ninja beside its python.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # flock, since the kernel gives it back when a process dies; torch's own lock file would stay for ever.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(place: Path) -> None:
    print(f"compiling the sparse kernels, once, about a minute, into {place}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    before = os.environ.get("PATH")
    os.environ["PATH"] = _search_path()
    try:
        # Imported here: it needs setuptools, and most runs find the library ready.
        from torch.utils import cpp_extension

        (place / "lock").unlink(missing_ok=True)  # of a build that was killed; nobody holds it, we hold ours
        cpp_extension.load(
            NAME,
            [str(HERE / name) for name in SOURCES if name.endswith(".cpp")],
            extra_cflags=list(FLAGS),
            extra_ldflags=["-fopenmp"],
            build_directory=str(place),
            is_python_module=False,
        )
    except (RuntimeError, ImportError, subprocess.SubprocessError) as error:
        raise BuildError(f"compiling them failed; in {place}:\n{error}") from error
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before
    print(f"compiled in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Build ahead: ``python -m nt_pretrain.sparsity.kernels.build``."""
    try:
        print(f"ready: {load()}")
    except BuildError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
