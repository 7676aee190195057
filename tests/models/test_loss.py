"""The chunked output loss against torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from nt_pretrain.models.loss import IGNORED, linear_cross_entropy_sum


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients(chunk, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(37, 16, dtype=dtype, generator=generator, requires_grad=True)
    targets = torch.randint(0, 37, (50,), generator=generator)
    targets[[3, 4, 49]] = IGNORED
    loss = linear_cross_entropy_sum(hidden, weight, targets, chunk=chunk)
    loss.backward(torch.tensor(0.25, dtype=loss.dtype))
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = F.cross_entropy(hidden @ weight.t(), targets, ignore_index=IGNORED, reduction="sum")
    (expected * 0.25).backward()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0], hidden.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], weight.grad, rtol=1e-5, atol=1e-5)


def test_bf16_sums_in_fp32():
    hidden = torch.randn(2000, 16, dtype=torch.bfloat16)
    weight = torch.randn(37, 16, dtype=torch.bfloat16)
    targets = torch.randint(0, 37, (2000,))
    loss = linear_cross_entropy_sum(hidden, weight, targets, chunk=128)
    expected = F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_all_logits_never_exist_at_once(monkeypatch):
    """No operation on the way makes a tensor with more than chunk x vocabulary elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(640, 8, requires_grad=True)
    weight = torch.randn(500, 8, requires_grad=True)
    with Watch():
        linear_cross_entropy_sum(hidden, weight, torch.randint(0, 500, (640,)), chunk=32).backward()
    assert largest == 32 * 500


def test_all_targets_ignored_is_zero():
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = linear_cross_entropy_sum(hidden, weight, torch.full((5,), IGNORED), chunk=2)
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not weight.grad.any()
