"""Blocks on the path of a GPU: in triton's interpreter, without values, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nt_pretrain.sparsity.kernels.heads import HeadsLayout, heads_linear
from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.kernels.linear import block_linear, csr_linear
from tests.sparsity.interpreted_linear import ensure_heads, ensure_right, heads_of, layout_of
from tests.sparsity.kernels.reference import draw
from tests.sparsity.test_kernels_triton import needs_triton, run_alone


@needs_triton
def test_layers_in_the_interpreter() -> None:
    told = run_alone("-m", "pytest", "-q", "tests/sparsity/interpreted_linear.py", TRITON_INTERPRET="1")
    assert "passed" in told and "failed" not in told, told


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("real_columns", [False, True])
def test_a_rehearsal_knows_shapes_and_types(real_columns: bool, turned: bool) -> None:
    """No GPU, no triton and no values are needed to know what comes out."""
    real = layout_of(100, 130, 32, 2, 0).columns
    with FakeTensorMode(allow_non_fake_inputs=True):
        layout = BlockLayout(100, 130, 32, real if real_columns else torch.zeros(4, 2, dtype=torch.int32))
        values = torch.zeros(layout.shape, requires_grad=True)
        x = torch.zeros(3, 7, 100 if turned else 130, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block_linear(x, values, layout, turned=turned)
        y.float().sum().backward()
    assert y.shape == (3, 7, 130 if turned else 100) and y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.shape == x.shape and x.grad.dtype == torch.float32
    assert values.grad is not None and values.grad.shape == values.shape and values.grad.dtype == torch.float32


def test_a_rehearsal_of_all_heads_in_one_launch() -> None:
    with FakeTensorMode():
        columns = torch.zeros(2, 1, dtype=torch.int32)
        heads = HeadsLayout((BlockLayout(32, 48, 16, columns), BlockLayout(32, 48, 16, columns.clone())))
        values = [torch.zeros(2, 1, 16, 16, requires_grad=True) for _ in range(2)]
        x = torch.zeros(5, 48, dtype=torch.bfloat16, requires_grad=True)
        y = heads_linear(x, values, heads, shared=True)
        y.float().sum().backward()
    assert y.shape == (2, 5, 32) and x.grad is not None and x.grad.shape == (5, 48)
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in values)


@pytest.mark.parametrize("shared", [False, True])
def test_on_the_cpu_heads_run_one_after_another(shared: bool) -> None:
    heads, values = heads_of(40, 50, 16, 2, 3)
    ensure_heads(draw((5, 50) if shared else (3, 5, 50), 0, torch.float32), heads, values, None, shared=shared)
    with pytest.raises(ValueError, match=r"Triton kernels need a CUDA device, x is on cpu"):
        heads_linear(torch.zeros(3, 5, 50), values, heads, by="triton")


def test_devices_that_do_not_fit_are_named() -> None:
    with FakeTensorMode():
        layout = BlockLayout(32, 32, 16, torch.zeros(2, 1, dtype=torch.int32))
        values = torch.zeros(layout.shape, device="cuda")
        with pytest.raises(ValueError, match=r"x is on cuda:0, the values are on cuda:0 .* columns on cpu: .* move"):
            block_linear(torch.zeros(3, 32, device="cuda"), values, layout)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layers_on_a_gpu(dtype: torch.dtype, turned: bool) -> None:
    made = layout_of(200, 130, 64, 2, 0)
    layout = BlockLayout(200, 130, 64, made.columns.cuda())
    ensure_right(draw((3, 50, 200 if turned else 130), 0, dtype).cuda(), layout, turned)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("by", ["triton", "stk"])
@pytest.mark.parametrize(("shared", "turned"), [(False, False), (True, False), (False, True)])
def test_heads_together_on_a_gpu(by: str, shared: bool, turned: bool) -> None:
    if by == "stk":
        pytest.importorskip("stk")
    heads, values = heads_of(256, 384, 128, 2, 3, device="cuda")
    width = 256 if turned else 384
    x = draw((300, width) if shared else (3, 300, width), 0, torch.float32).cuda()
    # On a GPU stk multiplies float32 in TF32, which keeps 10 bits; sums here are of some ten.
    ensure_heads(x, heads, values, by, close=0.1 if by == "stk" else 1e-4, shared=shared, turned=turned)


def test_without_triton_plain_torch_is_named_once_with_the_extra() -> None:
    code = """
import sys
sys.modules["triton"] = None
from nt_pretrain.sparsity.kernels import triton_path
sys.stderr = sys.stdout
print(triton_path.available(), triton_path.available())
"""
    first, second = run_alone("-c", code).splitlines()
    assert first.startswith("sparse products on this GPU run in plain torch, with the same numbers but slower: ")
    assert first.endswith("pip install 'nt-pretrain[gpu]'") and second == "False False"


def test_single_weights_stay_on_the_cpu() -> None:
    from nt_pretrain.sparsity.kernels.layout import layout_of_mask

    layout = layout_of_mask(torch.ones(4, 4, dtype=torch.bool))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=r"x is on cuda:0.*run on the CPU"):
        csr_linear(torch.zeros(2, 4, device="cuda"), torch.zeros(16), layout)
