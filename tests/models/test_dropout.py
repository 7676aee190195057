"""Dropped units: which there are, that what is left is scaled, and masks that only the key and the numbers decide."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.dropout import Drop, dropping, kept, sites
from nt_pretrain.models.llama import make_context
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import build

TEXT = ModelSection(vocab_size=50, hidden=32, intermediate=48, layers=2, attention_heads=4, heads=2, blocks_in_head=1)


def logits(model: MultiHead, tokens: torch.Tensor) -> torch.Tensor:
    context = make_context(TEXT, torch.zeros_like(tokens))
    with torch.no_grad():
        hidden = model.trunk_output(tokens, context)
        return torch.stack([head(hidden, context) for head in model.heads.values()])


@pytest.mark.parametrize(
    ("family", "count"), [("resnet20", 12), ("wide_resnet28_10", 15), ("resnet50", 38), ("llama", 6), ("mlp", 3)]
)
def test_every_block_has_units_between_its_layers(family: str, count: int) -> None:
    with torch.device("meta"):
        model = (
            TEXT
            if family == "llama"
            else ModelSection(family=family, heads=2, blocks_in_head=1 if family == "mlp" else 3, classes=3)
        )
        found = sites(build(model))
    assert len(found) == count
    assert len({site.name for site in found}) == count
    assert {site.width for site in found} == ({1, 8} if family == "llama" else {1})


def test_rate_0_changes_no_bit_and_afterwards_nothing_is_left() -> None:
    torch.manual_seed(0)
    model, tokens = build(TEXT).double(), torch.randint(0, 50, (3, 7))
    plain = logits(model, tokens)
    with dropping(model, Drop(0.0, (1,))):
        assert torch.equal(logits(model, tokens), plain)
    with dropping(model, Drop(0.4, (1,))):
        dropped = logits(model, tokens)
    with dropping(model, Drop(0.4, (1,))):
        assert torch.equal(logits(model, tokens), dropped)
    with dropping(model, Drop(0.4, (2,))):
        assert not torch.equal(logits(model, tokens), dropped)
    assert not torch.equal(dropped, plain)
    with pytest.raises(RuntimeError, match="stop"), dropping(model, Drop(0.4, (1,))):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, tokens), plain)


def test_a_dropped_unit_is_gone_and_the_others_are_scaled() -> None:
    """The same as weights without the columns that the units are read by."""
    torch.manual_seed(0)
    model, tokens, drop = build(TEXT).double(), torch.randint(0, 50, (3, 7)), Drop(0.3, ("here",))
    with dropping(model, drop):
        dropped = logits(model, tokens)
    with torch.no_grad():
        for site in sites(model):
            weight = site.module.weight
            mask = kept(drop, site.name, weight.shape[1] // site.width, weight.device)[0]
            assert int((~mask).sum()) > 0 or site.width == 8
            weight.mul_(mask.repeat_interleave(site.width).double() / 0.7)
    torch.testing.assert_close(logits(model, tokens), dropped, rtol=1e-12, atol=1e-12)


def test_each_sample_has_a_mask_of_its_own_whatever_batch_it_is_in() -> None:
    torch.manual_seed(0)
    model, tokens = build(TEXT).double(), torch.randint(0, 50, (1, 7)).expand(4, 7)
    with dropping(model, Drop(0.3, (5,), torch.arange(4))):
        together = logits(model, tokens)
    assert not torch.allclose(together[:, 0], together[:, 1])
    for number in range(4):
        with dropping(model, Drop(0.3, (5,), torch.tensor([number]))):
            alone = logits(model, tokens[:1])
        torch.testing.assert_close(alone[:, 0], together[:, number], rtol=1e-12, atol=1e-12)


def test_ranks_that_share_the_units_drop_the_same_ones() -> None:
    cpu = torch.device("cpu")
    whole = kept(Drop(0.3, (5,), torch.arange(3)), "x", 48, cpu)
    parts = [kept(Drop(0.3, (5,), torch.arange(3), (rank, 3)), "x", 16, cpu) for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_the_share_of_dropped_units_is_the_rate(rate: float) -> None:
    units, samples = 1000, 50
    drops = ~kept(Drop(rate, ("key",), torch.arange(samples)), "layer", units, torch.device("cpu"))
    count = units * samples
    # Five standard deviations of a binomial; and of each unit and each sample alone.
    assert abs(int(drops.sum()) - rate * count) < 5 * math.sqrt(count * rate * (1 - rate))
    for dim, each in ((0, samples), (1, units)):
        worst = (drops.sum(dim) - rate * each).abs().max()
        assert float(worst) < 6 * math.sqrt(each * rate * (1 - rate)) + 1


def test_pictures_lose_whole_channels() -> None:
    model = build(ModelSection(family="resnet20", classes=3, heads=1)).eval()
    seen: list[torch.Tensor] = []
    (site, *_) = sites(model)
    pixels = torch.randn(2, 3, 8, 8)
    drop = Drop(0.5, (1,), torch.arange(2))
    with torch.no_grad(), dropping(model, drop):
        handle = site.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model.trunk_output(pixels, None)
        handle.remove()
    mask = kept(drop, site.name, 16, pixels.device)
    assert torch.equal(seen[0].abs().amax(dim=(2, 3)) > 0, mask & (seen[0].abs().amax(dim=(2, 3)) > 0))
    assert not seen[0][~mask].any() and seen[0][mask].any() and not mask.all()


def test_hidden_units_of_a_perceptron_are_0_for_whoever_reads_them() -> None:
    torch.manual_seed(0)
    model = build(ModelSection(family="mlp", classes=3, heads=1, blocks_in_head=1))
    drop, rows = Drop(0.5, (1,), torch.arange(4)), torch.randn(4, 32)
    with torch.no_grad():
        plain = model.trunk_output(rows, None)
        with dropping(model.trunk, drop, prefix="trunk."):
            dropped = model.trunk_output(rows, None)
    mask = kept(drop, "trunk.blocks.0.linear", 64, rows.device)
    torch.testing.assert_close(dropped, plain * mask * 2.0)
    assert not mask.all() and mask.any()
