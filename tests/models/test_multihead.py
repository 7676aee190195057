"""Counts of the paper's models, and that the cut into trunk and heads computes what a plain model computes."""

import pytest
import torch
import torch.nn.functional as F

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.init import initial_values
from nt_pretrain.models.llama import make_context
from nt_pretrain.models.multihead import MultiHead, build

SMALL = ModelSection(
    vocab_size=97, hidden=32, intermediate=48, layers=3, attention_heads=4, heads=3, blocks_in_head=2, init_std=0.2
)  # fmt: skip


def filled(model: ModelSection) -> MultiHead:
    built = build(model)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            index = torch.arange(parameter.numel()).view(parameter.shape)
            parameter.copy_(initial_values(name, index, seed=0, model=model))
    return built


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (dict(hidden=1024, intermediate=2736, layers=24, attention_heads=16, heads=3, blocks_in_head=16), 836_750_336),
        (dict(hidden=1024, intermediate=2736, layers=24, attention_heads=16), 367_969_280),
        (
            dict(hidden=1024, intermediate=2736, layers=24, attention_heads=16, heads=3, blocks_in_head=24),
            1_103_907_840,
        ),
        (dict(heads=3, blocks_in_head=8), 296_530_176),
        (dict(), 134_105_856),
        (dict(hidden=128, intermediate=352, layers=4, attention_heads=4, heads=3, blocks_in_head=2), 17_992_064),
    ],
)
def test_parameter_counts_of_the_paper(shape, parameters):
    with torch.device("meta"):
        model = build(ModelSection(**shape))
    assert sum(p.numel() for p in model.parameters()) == parameters


def logits_of(model: MultiHead, section: ModelSection, tokens: torch.Tensor, documents=None) -> list[torch.Tensor]:
    context = make_context(section, torch.zeros_like(tokens) if documents is None else documents)
    hidden = model.trunk_output(tokens, context)
    return [head(hidden, context) for head in model.heads.values()]


@pytest.mark.parametrize("blocks_in_head", [0, 1, 3])
def test_one_head_computes_the_same_wherever_it_is_cut(blocks_in_head):
    """The same weights, moved between trunk and head, give the same logits."""
    plain = SMALL.model_copy(update={"heads": 1, "blocks_in_head": 0})
    cut = plain.model_copy(update={"blocks_in_head": blocks_in_head})
    reference, model = filled(plain), filled(cut)
    ordered = [p for _, p in reference.named_parameters()]
    with torch.no_grad():
        for target, source in zip(model.parameters(), ordered, strict=True):
            target.copy_(source)
    tokens = torch.arange(40).view(2, 20)
    assert torch.equal(logits_of(reference, plain, tokens)[0], logits_of(model, cut, tokens)[0])


def test_attention_is_causal():
    model = filled(SMALL)
    tokens = torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 12:] += 30
    before, after = logits_of(model, SMALL, tokens), logits_of(model, SMALL, changed)
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first[0, :12], second[0, :12])
        assert not torch.allclose(first[0, 12:], second[0, 12:])


def test_document_mask_isolates_documents():
    """With the mask, a document inside a packed sequence gets the logits it gets alone (positions are relative)."""
    section = SMALL.model_copy(update={"document_mask": True})
    model = filled(section)
    tokens = torch.arange(24)[None]
    documents = torch.tensor([[0] * 10 + [1] * 14])
    packed = logits_of(model, section, tokens, documents)
    alone = logits_of(model, section, tokens[:, 10:])
    for whole, part in zip(packed, alone, strict=True):
        torch.testing.assert_close(whole[:, 10:], part, rtol=1e-4, atol=1e-4)
    without = logits_of(model, SMALL, tokens, documents)
    assert not torch.allclose(without[0][:, 10:], alone[0], rtol=1e-3, atol=1e-3)


def test_grouped_query_attention_equals_repeated_keys():
    grouped = SMALL.model_copy(update={"kv_heads": 2})
    model, wide = filled(grouped), filled(SMALL)
    with torch.no_grad():
        for target, source in zip(wide.parameters(), model.parameters(), strict=True):
            if target.shape == source.shape:
                target.copy_(source)
            else:  # key and value projections: each of 2 groups serves 2 attention heads
                target.copy_(source.view(2, 1, 8, 32).expand(2, 2, 8, 32).reshape(32, 32))
    tokens = torch.arange(30).view(2, 15)
    for first, second in zip(logits_of(model, grouped, tokens), logits_of(wide, SMALL, tokens), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_loss_is_cross_entropy_of_the_logits():
    model = filled(SMALL)
    tokens = torch.arange(40).view(2, 20)
    targets = (tokens + 1) % 97
    targets[0, 3:9] = -100
    context = make_context(SMALL, tokens)
    hidden = model.trunk_output(tokens, context)
    for head, logits in zip(model.heads.values(), logits_of(model, SMALL, tokens), strict=True):
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        torch.testing.assert_close(head(hidden, context, targets, 7), expected)


def test_final_norm_twice_changes_logits_only_by_the_gain():
    """With unit gains the second norm is the identity up to epsilon; with others it is not."""
    twice = SMALL.model_copy(update={"final_norm_twice": True})
    model, doubled = filled(SMALL), filled(twice)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(
        logits_of(model, SMALL, tokens)[0], logits_of(doubled, twice, tokens)[0], rtol=1e-3, atol=1e-3
    )
    with torch.no_grad():
        for each in (model, doubled):
            each.heads["0"].norm.weight.copy_(torch.linspace(0.5, 2, 32))
    assert not torch.allclose(logits_of(model, SMALL, tokens)[0], logits_of(doubled, twice, tokens)[0], rtol=1e-2)
