"""The Triton kernels: in triton's interpreter on the CPU, compiled for GPUs that are not there, and on one that is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.sparsity.interpreted import ensure_right

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run_alone(*arguments: str, **environment: str) -> str:
    """What python prints with ``arguments``, in a process of its own: nothing of this one's triton is touched."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], env=kept | environment | {"PYTHONPATH": paths}, cwd=root, text=True,
        capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_products_in_the_interpreter():
    told = run_alone("-m", "pytest", "-q", "tests/sparsity/interpreted.py", TRITON_INTERPRET="1")
    assert "8 passed" in told and "skipped" not in told, told


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from nt_pretrain.sparsity import kernels_triton as kernels

KINDS = {"values": "*bf16", "x": "*bf16", "y": "*bf16", "dx": "*bf16", "dy": "*bf16", "dw": "*fp32",
         "columns": "*i32", "rows": "*i32", "starts": "*i32", "positions": "*i32"}
FIXED = {"B": 64, "BM": 64, "BK": 64, "BT": 64, "PRECISION": "ieee", "SIZE": 1024}
for kernel in (kernels._fwd, kernels._dx, kernels._dw):
    names = kernel.arg_names
    kinds = {name: "constexpr" if name in FIXED else KINDS.get(name, "i32") for name in names}
    fixed = {(at,): FIXED[name] for at, name in enumerate(names) if name in FIXED}
    even = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names)
            if kinds[name].startswith("*") or name.endswith(("_head", "_token"))}
    for capability in (80, 90) if kernel is kernels._fwd else (90,):
        target = GPUTarget("cuda", capability, 32)
        source, options = ASTSource(kernel, kinds, fixed, even), {"num_warps": 4, "num_stages": 3}
        made = compile(source, target=target, options=options)
        units = "wgmma.mma_async" if capability == 90 else "mma.sync"
        print(capability, units in made.asm["ptx"], "cp.async" in made.asm["ptx"], made.metadata.shared < 100_000)
"""


@needs_triton
def test_kernels_compile_for_gpus_and_use_their_tensor_cores(tmp_path):
    told = run_alone("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert sorted(told.split("\n")[:-1]) == ["80 True True True"] + ["90 True True True"] * 3


def test_without_triton_the_extra_is_named():
    code = """
import sys
sys.modules["triton"] = None
try:
    import nt_pretrain.sparsity.kernels_triton
except ImportError as error:
    print(error)
"""
    assert run_alone("-c", code) == (
        "the block kernels for GPUs need triton, which is not installed; install the extra: "
        "pip install 'nt-pretrain[gpu]'\n"
    )


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("unit", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_on_a_gpu(unit, dtype, shared):
    from nt_pretrain.sparsity import kernels_triton

    for tokens in (1, 100, 2048):
        ensure_right(
            kernels_triton,
            unit=unit,
            heads=3,
            rows=5,
            across=4,
            fan=2,
            tokens=tokens,
            shared=shared,
            dtype=dtype,
            device="cuda",
        )
