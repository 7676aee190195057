"""Which ways to multiply sparse weights run on this machine, and why the others do not.

Nothing is guessed from versions where it can be tried: packages are imported, kernels built, megablocks asked by its
own check. So a probe takes seconds, and the first one on a machine compiles the kernels.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nt_pretrain.sparsity.kernels import build, triton_path

EXTRA = "pip install 'nt-pretrain[gpu]'"
OLDEST_GPU = (8, 0)
"""Compute capability from which bfloat16 products have hardware: A100 and later."""


@dataclass(frozen=True)
class Capability:
    """One way to multiply.

    Attributes:
        told: where it runs: with which versions; where it does not: why.
        advice: what to do so that it runs; empty where it does, or where nothing helps.
    """

    name: str
    runs: bool
    told: str
    advice: str = ""


class _Missing(Exception):
    """Why something does not run, and what to do."""

    def __init__(self, told: str, advice: str = "") -> None:
        super().__init__(told)
        self.told, self.advice = told, advice


def capabilities() -> list[Capability]:
    """All ways there are, in the order in which a run takes them; the first call may compile."""
    probes: tuple[tuple[str, Callable[[], str]], ...] = (
        ("compiled CPU kernels", _compiled),
        ("plain torch", lambda: f"torch {torch.__version__}, any device; slower than kernels"),
        ("Triton kernels", _triton),
        ("stk", _stk),
        ("megablocks, sparse", _megablocks),
        ("grouped GEMM", _grouped),
    )
    return [_probed(name, probe) for name, probe in probes]


def report(found: list[Capability]) -> str:
    """One line for each, and one more with what to do."""
    width = max(len(each.name) for each in found)
    lines = []
    for each in found:
        lines.append(f"  {each.name:<{width}}  {'yes' if each.runs else 'no '}  {each.told}")
        if each.advice:
            lines.append(f"  {'':<{width}}       {each.advice}")
    return "\n".join(["ways to multiply sparse weights here:", *lines])


def _probed(name: str, probe: Callable[[], str]) -> Capability:
    try:
        return Capability(name, True, probe())
    except _Missing as missing:
        return Capability(name, False, missing.told, missing.advice)


def _compiled() -> str:
    try:
        return f"{build.load()}"
    except build.BuildError as error:
        raise _Missing(" ".join(str(error).split()), "the same products run in plain torch until then") from error


def _triton() -> str:
    version = _imported("triton", "triton", EXTRA)
    _imported("nt_pretrain.sparsity.kernels_triton", None, EXTRA)
    return f"triton {version}, {_gpu()}"


def _stk() -> str:
    version = _imported("stk.ops", "stanford-stk", f"{EXTRA} (or only: pip install --no-deps stanford-stk==0.7.1)")
    return f"stanford-stk {version}, {_gpu()}; blocks of 128 only"


def _megablocks() -> str:
    version = _imported("megablocks", "megablocks", 'docs/INSTALL.md, "megablocks"; nothing here needs it')
    arguments = importlib.import_module("megablocks.layers.arguments")
    triton = _version("triton") or "(none)"
    try:
        arguments.Arguments(mlp_impl="sparse", device=torch.device("cpu"))
    except Exception as error:  # of whatever kind: it is megablocks' own answer
        raise _Missing(
            f"megablocks {version} refuses it with triton {triton}: {_one_line(error)}",
            "heads run together by stk's products, which it is made of, or by our Triton kernels",
        ) from error
    return f"megablocks {version} accepts triton {triton}; {_gpu()}"


def _grouped() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    package = _version("grouped_gemm")
    other = f"grouped_gemm {package}" if package else "without grouped_gemm, which it does not need"
    ends = torch.tensor([16, 32], dtype=torch.int32, device=device)
    left = torch.ones(32, 16, dtype=torch.bfloat16, device=device)
    try:
        found = torch.nn.functional.grouped_mm(left, left.new_ones(2, 16, 16), offs=ends)
        assert float(found.float().mean()) == 16.0, "the product is wrong"
    except Exception as error:  # of whatever kind: the answer is that it does not run
        raise _Missing(
            f"torch.nn.functional.grouped_mm of torch {torch.__version__} fails on this {device}: {_one_line(error)}",
            "dense heads run as batched products (torch.bmm)",
        ) from error
    return f"torch.nn.functional.grouped_mm on {device}, for dense heads; {other}"


def _imported(module: str, package: str | None, advice: str) -> str:
    """The version of ``package``, after an import of ``module`` that worked."""
    try:
        importlib.import_module(module)
    except Exception as error:  # an installed package of another torch fails in many ways; each is the answer
        version = package and _version(package)
        if package and isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise _Missing(f"{package} is not installed", f"to install it: {advice}") from error
        name = " ".join(filter(None, (package, version))) if package else module
        raise _Missing(f"{name} cannot be imported: {_one_line(error)}", f"to install it: {advice}") from error
    return (package and _version(package)) or "of unknown version"


def _version(package: str) -> str | None:
    """Of the module of that name where one is loaded, otherwise of what pip installed; None where neither says."""
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded:
        return str(loaded)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str:
    if torch.cuda.is_available():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if capability < OLDEST_GPU:
            raise _Missing(f"{name} has compute capability {'.'.join(map(str, capability))}; 8.0 or newer is needed")
        return name
    if triton_path.interpreting():
        return "interpreted on the CPU (TRITON_INTERPRET=1): for tests only"
    if torch.version.cuda is None and torch.version.hip is None:
        raise _Missing(
            f"no GPU can be used: torch {torch.__version__} is a CPU build",
            "on a machine with a GPU, install torch from PyPI: docs/INSTALL.md",
        )
    raise _Missing(f"torch {torch.__version__} sees no GPU", "nvidia-smi tells whether the driver does")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
