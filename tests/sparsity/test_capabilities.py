"""What the probe says of packages that are there, broken, refusing or missing: stubs, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nt_pretrain.sparsity.capabilities import capabilities, report
from nt_pretrain.sparsity.kernels import build

ROOT = Path(__file__).parents[2]
ASK = """
import dataclasses, json, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: an import fails as if it were not installed
from nt_pretrain.sparsity.capabilities import capabilities
print(json.dumps({each.name: dataclasses.asdict(each) for each in capabilities()}))
"""
ARGUMENTS = """
import dataclasses
@dataclasses.dataclass
class Arguments:
    mlp_impl: str = "sparse"
    device: object = None
    def __post_init__(self):
        import triton
        if triton.__version__ >= "3.2.0":
            raise ValueError("Sparse MLP is not supported\\n with triton >=3.2.0.")
"""


def asked(stubs: Path, *missing: str, **environment: str) -> dict[str, dict[str, object]]:
    """The answer of a process that finds the packages of ``stubs`` first, and not those of ``missing``."""
    paths = os.pathsep.join([str(stubs), str(ROOT)])
    unset = {"TRITON_INTERPRET", "CXX"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *missing], env=kept | environment | {"PYTHONPATH": paths}, cwd=stubs, text=True,
        capture_output=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def put(stubs: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (stubs / name).parent.mkdir(parents=True, exist_ok=True)
        (stubs / name).write_text(content)


def test_missing_packages_are_named_with_what_installs_them(tmp_path: Path) -> None:
    found = asked(tmp_path, "triton", "stk", "megablocks")
    assert list(found) == [
        "compiled CPU kernels", "plain torch", "Triton kernels", "stk", "megablocks, sparse", "grouped GEMM"
    ]  # fmt: skip
    assert found["plain torch"]["runs"] and torch.__version__ in str(found["plain torch"]["told"])
    for name, package in (("Triton kernels", "triton"), ("stk", "stanford-stk")):
        assert not found[name]["runs"] and "pip install 'nt-pretrain[gpu]'" in str(found[name]["advice"]), name
        assert package in str(found[name]["told"])
    assert not found["megablocks, sparse"]["runs"] and "docs/INSTALL.md" in str(found["megablocks, sparse"]["advice"])


@pytest.mark.parametrize(("triton", "accepted"), [("3.1.0", True), ("3.7.1", False)])
def test_megablocks_is_asked_by_its_own_check(tmp_path: Path, triton: str, accepted: bool) -> None:
    versions = {"triton/__init__.py": triton, "megablocks/__init__.py": "0.10.0"}
    put(tmp_path, {name: f"__version__ = {version!r}" for name, version in versions.items()})
    put(tmp_path, {"megablocks/layers/arguments.py": ARGUMENTS})
    told = asked(tmp_path)["megablocks, sparse"]["told"]
    refusal = f"megablocks 0.10.0 refuses it with triton {triton}: Sparse MLP is not supported with triton >=3.2.0."
    assert (told == refusal) is not accepted
    if accepted and not torch.cuda.is_available():
        assert "GPU" in str(told), "what megablocks would accept needs a GPU still"


def test_packages_that_break_at_their_import_are_no_traceback(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "stk/__init__.py": "__version__ = '0.7.1'",
            "stk/ops.py": "raise OSError('libcudart.so.12:\\n cannot open')",
            "megablocks/__init__.py": "import megablocks_ops",
            "triton/__init__.py": "__version__ = '9.9'",
        },
    )
    found = asked(tmp_path)
    assert found["stk"]["told"] == "stanford-stk cannot be imported: libcudart.so.12: cannot open"
    assert "No module named 'megablocks_ops'" in str(found["megablocks, sparse"]["told"])
    assert not found["Triton kernels"]["runs"]
    assert "kernels_triton cannot be imported" in str(found["Triton kernels"]["told"])


def test_why_kernels_cannot_be_compiled_is_told(tmp_path: Path) -> None:
    environment = {"CXX": "no-such-compiler", build.FOLDER_VARIABLE: str(tmp_path / "kernels")}
    found = asked(tmp_path, **environment)["compiled CPU kernels"]
    assert not found["runs"] and "there is no C++ compiler 'no-such-compiler'" in str(found["told"])


def test_the_report_has_a_line_for_each_and_its_advice() -> None:
    found = capabilities()
    lines = report(found).splitlines()
    assert len(lines) == 1 + len(found) + sum(bool(each.advice) for each in found)
    for each in found:
        assert any(line.split()[: len(each.name.split())] == each.name.split() for line in lines), each.name
        assert all("\n" not in text for text in (each.told, each.advice))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_triton_kernels_run() -> None:
    pytest.importorskip("triton")
    found = {each.name: each for each in capabilities()}["Triton kernels"]
    assert found.runs and torch.cuda.get_device_name() in found.told
