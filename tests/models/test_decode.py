"""Decoding with a cache computes what the whole forward pass computes, whatever the model's shape and the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import ModelSection, SparsitySection
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.decode import decode_step, empty_cache, prefill
from nt_pretrain.models.init import initial_values
from nt_pretrain.models.llama import make_context
from nt_pretrain.models.multihead import MultiHead, build
from nt_pretrain.sparsity.block_budget import line_budgets
from nt_pretrain.sparsity.block_topology import draw_layer
from nt_pretrain.sparsity.layers import SparseLinear, replace_layers, sparse_layers

SHAPES = {
    "one head": dict(heads=1, blocks_in_head=0),
    "two heads": dict(heads=2, blocks_in_head=1),
    "three heads": dict(heads=3, blocks_in_head=2),
    "output layers only": dict(heads=2, blocks_in_head=0),
    "deep ensemble": dict(heads=2, blocks_in_head=3),
    "final norm twice": dict(heads=2, blocks_in_head=1, final_norm_twice=True),
    "grouped queries": dict(heads=2, blocks_in_head=1, kv_heads=2),
    "document mask": dict(heads=1, blocks_in_head=1, document_mask=True),
    "relu": dict(heads=2, blocks_in_head=1, ffn="relu"),
    "width of heads": dict(heads=2, blocks_in_head=1, attention_heads=3, head_width=12),
    "squared relu": dict(heads=2, blocks_in_head=1, ffn="relu2"),
}


def section_of(name: str) -> ModelSection:
    base = dict(vocab_size=97, hidden=64, intermediate=96, layers=3, attention_heads=4, init_std=0.2)
    return ModelSection(**base | SHAPES[name])


def model_of(section: ModelSection, dtype: torch.dtype = torch.float32) -> MultiHead:
    model = build(section)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            index = torch.arange(parameter.numel()).view(parameter.shape)
            parameter.copy_(initial_values(name, index, seed=0, model=section))
    return model.to(dtype)


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def whole(model: MultiHead, section: ModelSection, tokens: Tensor) -> Tensor:
    """Logits [M, B, T, V] of one forward pass over all tokens."""
    context = make_context(section, torch.zeros_like(tokens))
    hidden = model.trunk_output(tokens, context)
    return torch.stack([head(hidden, context) for head in model.heads.values()])


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", list(SHAPES))
def test_step_by_step_as_all_at_once(name: str) -> None:
    section = section_of(name)
    model, tokens = model_of(section), tokens_of(3, 13)
    expected = whole(model, section, tokens)
    cache = empty_cache(model, section, sequences=3, capacity=13)
    assert_near(prefill(model, tokens[:, :5], cache), expected[:, :, 4])
    for at in range(5, 13):
        assert_near(decode_step(model, tokens[:, at], cache), expected[:, :, at])
    assert cache.lengths.tolist() == [13, 13, 13]


@pytest.mark.parametrize("name", ["three heads", "deep ensemble", "grouped queries"])
def test_sequences_of_different_lengths(name: str) -> None:
    section, counts = section_of(name), torch.tensor([4, 1, 7])
    model, tokens = model_of(section), tokens_of(3, 12)
    expected = whole(model, section, tokens)
    cache = empty_cache(model, section, sequences=3, capacity=12)
    padded = tokens[:, :7].clone()
    padded[torch.arange(7) >= counts[:, None]] = 96  # what fills up is seen by nobody
    logits = prefill(model, padded, cache, counts)
    for _ in range(5):
        at = cache.lengths - 1
        assert_near(logits, expected[:, torch.arange(3), at])
        logits = decode_step(model, tokens[torch.arange(3), cache.lengths], cache)
    assert cache.lengths.tolist() == [9, 6, 12]


def test_a_prompt_in_pieces() -> None:
    section = section_of("three heads")
    model, tokens = model_of(section), tokens_of(2, 12)
    expected = whole(model, section, tokens)
    cache = empty_cache(model, section, sequences=2, capacity=12)
    prefill(model, tokens[:, :3], cache)
    assert_near(prefill(model, tokens[:, 3:8], cache), expected[:, :, 7])
    # Now of different lengths, so that pieces begin at different positions.
    short = torch.tensor([1, 3])
    logits = prefill(model, tokens[:, 8:11], cache, short)
    assert_near(logits, expected[:, torch.arange(2), cache.lengths - 1])
    both = torch.stack([tokens[0, 9:10], tokens[1, 11:12]])
    assert_near(prefill(model, both, cache), expected[:, torch.arange(2), cache.lengths - 1])


def test_chosen_heads_only() -> None:
    section = section_of("three heads")
    model, tokens = model_of(section), tokens_of(1, 6)
    cache = empty_cache(model, section, sequences=1, capacity=6, heads=[2])
    prefill(model, tokens[:, :5], cache)
    assert_near(decode_step(model, tokens[:, 5], cache), whole(model, section, tokens)[2:, :, 5])
    assert len(cache.tensors()) == 2 * 3, "one trunk block and two of one head"


def test_the_trunk_is_computed_once_for_all_heads() -> None:
    section = section_of("three heads")
    model, tokens = model_of(section), tokens_of(1, 6)
    calls = []
    model.trunk.blocks[0].attention.query.register_forward_hook(lambda *_: calls.append(1))
    cache = empty_cache(model, section, sequences=1, capacity=6)
    prefill(model, tokens[:, :5], cache)
    decode_step(model, tokens[:, 5], cache)
    assert len(calls) == 2


def test_bfloat16() -> None:
    section = section_of("three heads")
    exact, model, tokens = model_of(section), model_of(section, torch.bfloat16), tokens_of(2, 9)
    expected = whole(exact, section, tokens)
    cache = empty_cache(model, section, sequences=2, capacity=9)
    logits = [prefill(model, tokens[:, :4], cache)]
    logits += [decode_step(model, tokens[:, at], cache) for at in range(4, 9)]
    found = torch.stack(logits, 2)
    assert found.dtype == torch.bfloat16
    # No further from the exact logits than the whole pass in the same precision, by and large.
    error = (found.float() - expected[:, :, 3:]).norm()
    assert error <= 1.5 * (whole(model, section, tokens)[:, :, 3:].float() - expected[:, :, 3:]).norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["three heads", "grouped queries"])
def test_on_a_gpu(name: str) -> None:
    section, counts = section_of(name), torch.tensor([4, 1, 7])
    model, tokens = model_of(section).cuda(), tokens_of(3, 12).cuda()
    expected = whole(model, section, tokens)
    cache = empty_cache(model, section, sequences=3, capacity=12)
    logits = prefill(model, tokens[:, :7], cache, counts)
    for _ in range(5):
        assert_near(logits, expected[:, torch.arange(3), cache.lengths - 1], 1e-3)
        logits = decode_step(model, tokens[torch.arange(3), cache.lengths], cache)


def test_layers_of_blocks() -> None:
    """Against the dense model with the same weights, and zeros where no block is."""
    section = section_of("three heads").model_copy(update={"vocab_size": 96})
    model, tokens = model_of(section), tokens_of(2, 9) % 96
    budgets = line_budgets(shapes_of(section), SparsitySection(density=0.5, unit=16, balance="line", backend="block"))
    dense = {name: parameter.detach() for name, parameter in model.named_parameters()}
    replace_layers(model, budgets)
    found = sparse_layers(model)
    assert {module.turned for module in found.values() if isinstance(module, SparseLinear)} == {True, False}
    for name, module in found.items():
        topology = draw_layer(name, budgets[name], torch.arange(budgets[name].lines), seed=0)
        module.place(topology.columns)
        turned = isinstance(module, SparseLinear) and module.turned
        weight = dense[name].t() if turned else dense[name]
        module.weight = torch.nn.Parameter(module.layout.from_dense(weight))
        masked = module.layout.to_dense(module.weight.detach())
        dense[name] = masked.t() if turned else masked
    reference = build(section)
    reference.load_state_dict(dense)
    expected = whole(reference, section, tokens)
    cache = empty_cache(model, section, sequences=2, capacity=9)
    assert_near(prefill(model, tokens[:, :4], cache), expected[:, :, 3])
    for at in range(4, 9):
        assert_near(decode_step(model, tokens[:, at], cache), expected[:, :, at])


def test_what_does_not_fit_is_told() -> None:
    section = section_of("three heads")
    model, tokens = model_of(section), tokens_of(2, 5)
    with pytest.raises(ValueError, match=r"there is no head 3; the model has 0, 1, 2"):
        empty_cache(model, section, sequences=1, capacity=4, heads=[3])
    with pytest.raises(ValueError, match="both must be at least 1"):
        empty_cache(model, section, sequences=0, capacity=4)
    cache = empty_cache(model, section, sequences=2, capacity=4)
    with pytest.raises(ValueError, match=r"would have 5 tokens, but the cache has room for 4"):
        prefill(model, tokens, cache)
    with pytest.raises(ValueError, match=r"for a cache of 2 sequences"):
        prefill(model, tokens[:1], cache)
    with pytest.raises(ValueError, match=r"must have 1 to 4 tokens"):
        prefill(model, tokens[:, :4], cache, torch.tensor([0, 4]))
    assert cache.lengths.tolist() == [0, 0], "a refused call changes nothing"
