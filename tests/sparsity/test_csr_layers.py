"""Modules of single weights against the dense ones with the same weights, and what they tell growth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nt_pretrain.models.loss import linear_cross_entropy_sum, matrix_cross_entropy_sum
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_layers import CsrEmbedding, CsrLinear, CsrMatrix, replace_single, single_layers

ROWS, INPUTS = 13, 7


class Heard:
    """Keeps the dense gradients that a layer tells."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def product(self, left: Tensor, right: Tensor) -> None:
        self.gradients.append(left.t() @ right)

    def dense(self, gradient: Tensor) -> None:
        self.gradients.append(gradient)


def pair(kind: type[CsrLinear] | type[CsrEmbedding], dtype: torch.dtype, active: int = 40):
    """A layer whose slots are in no order, its weights as a dense leaf, and their flat mask; row 3 is empty."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(ROWS * INPUTS, generator=generator)
    ids = ids[ids // INPUTS != 3][:active]
    layer = kind(LayerBudget((ROWS, INPUTS), 1, ROWS * INPUTS, active)).to(dtype)
    layer.place(ids)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(active, 1, generator=generator))
    dense = torch.zeros(ROWS * INPUTS, dtype=dtype).index_copy_(0, ids, layer.weight.detach().view(-1))
    return layer, dense.view(ROWS, INPUTS).requires_grad_(), ids


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [(0,), (5,), (2, 30)])
def test_an_embedding_looks_up_rows_and_sums_their_gradients(dtype: torch.dtype, tokens: tuple[int, ...]) -> None:
    layer, dense, ids = pair(CsrEmbedding, dtype)
    layer.scoring = heard = Heard()
    numbers = torch.randint(0, ROWS, tokens, generator=torch.Generator().manual_seed(1))
    found, expected = layer(numbers), nn.functional.embedding(numbers, dense)
    assert found.dtype == dtype and torch.equal(found, expected)
    slope = torch.randn(expected.shape, dtype=dtype)
    found.backward(slope)
    expected.backward(slope)
    assert layer.weight.grad is not None and dense.grad is not None
    loose = {"rtol": 2**-6, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(layer.weight.grad.view(-1), dense.grad.view(-1)[ids], **loose)
    (gradient,) = heard.gradients
    torch.testing.assert_close(gradient.to(dtype), dense.grad, **loose)


def test_a_linear_layer_and_what_growth_hears() -> None:
    layer, dense, ids = pair(CsrLinear, torch.float64)
    x = torch.randn(3, 4, INPUTS, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    torch.testing.assert_close(found, nn.functional.linear(x, dense))
    layer.scoring = heard = Heard()
    layer(x).square().sum().backward()
    ours = x.grad
    x.grad = None
    nn.functional.linear(x, dense).square().sum().backward()
    torch.testing.assert_close(ours, x.grad)
    assert layer.weight.grad is not None and dense.grad is not None
    torch.testing.assert_close(layer.weight.grad.view(-1), dense.grad.view(-1)[ids])
    torch.testing.assert_close(heard.gradients[0], dense.grad)


@pytest.mark.parametrize("scored", [False, True])
def test_the_loss_of_an_output_layer(scored: bool) -> None:
    layer, dense, ids = pair(CsrLinear, torch.float64)
    layer.scoring = heard = Heard() if scored else None
    hidden = torch.randn(9, INPUTS, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 12, -100, 5, 5, 1, 2, -100])
    matrix = CsrMatrix(layer, layer.weight.detach())
    (matrix_cross_entropy_sum(hidden, layer.weight, matrix, targets, chunk=4) * 3).backward()
    ours = hidden.grad
    hidden.grad = None
    (linear_cross_entropy_sum(hidden, dense, targets, chunk=4) * 3).backward()
    torch.testing.assert_close(ours, hidden.grad)
    assert layer.weight.grad is not None and dense.grad is not None
    torch.testing.assert_close(layer.weight.grad.view(-1), dense.grad.view(-1)[ids])
    if heard is not None:
        torch.testing.assert_close(heard.gradients[0], dense.grad)


def test_moved_weights_are_looked_up_at_their_new_place() -> None:
    layer, _, ids = pair(CsrEmbedding, torch.float32)
    everything = torch.arange(ROWS)
    before = layer(everything)
    ids[0] = 3 * INPUTS + 2
    after = layer(everything)
    assert float(after[3, 2].detach()) == float(layer.weight[0].detach()) and int((after != before.detach()).sum()) == 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.sum().backward()


def test_layers_with_a_budget_are_replaced_under_their_names() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "up": nn.Linear(4, 6, bias=False), "out": nn.Linear(6, 4)})
    budgets = {
        "trunk.embedding.weight": LayerBudget((5, 4), 1, 20, 3),
        "trunk.up.weight": LayerBudget((6, 4), 1, 24, 9),
    }
    replace_single(model, budgets, "trunk.")
    assert {name: type(each) for name, each in single_layers(model, "trunk.").items()} == {
        "trunk.embedding.weight": CsrEmbedding, "trunk.up.weight": CsrLinear,
    }  # fmt: skip
    assert {name: list(each.shape) for name, each in model.named_parameters()} == {
        "embedding.weight": [3, 1], "up.weight": [9, 1], "out.weight": [4, 6], "out.bias": [4],
    }  # fmt: skip
