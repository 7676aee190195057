"""Voices of small models compared block by block: what is shared, what was turned, what was shuffled."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.diversity.activations import Batch, activations, spaced, table_of
from nt_pretrain.diversity.inside import compare
from nt_pretrain.diversity.section_numbers import likeness, overlaps
from nt_pretrain.diversity.topology import layer_overlaps
from nt_pretrain.diversity.voice import Voice, block_site, own_from, unit_site, voices_of
from nt_pretrain.models.network import build

TEXT = ModelSection(
    vocab_size=50, hidden=16, intermediate=24, layers=3, attention_heads=2, heads=2, blocks_in_head=2
)  # fmt: skip


def quiet(what: str, done: int, total: int) -> None:
    return None


def text_voices(section: ModelSection = TEXT) -> list[Voice]:
    torch.manual_seed(0)
    return voices_of(build(section), section, [f"head {number}" for number in range(section.heads)])


def tokens(rows: torch.Tensor | None = None) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randint(0, 50, (4, 20), generator=draw), torch.zeros(4, 20, dtype=torch.int64), rows)
        for _ in range(2)
    ]


def test_the_trunk_is_not_compared_and_the_heads_are() -> None:
    voices = text_voices()
    assert own_from(voices) == 1
    found = compare(voices, tokens(), quiet)
    assert (found.shared, found.depth, found.samples) == (1, 3, 160)
    assert [block.number for block in found.blocks] == [1, 2]
    for block in found.blocks:
        assert block.cka.diagonal().tolist() == pytest.approx([1.0, 1.0])
        assert block.unit_cka is not None and block.unit_cka[0, 1] < 0.99
        assert block.units[0].shape == (160, 1, 24) and len(block.matchings) == 1
    assert "shared trunk" in likeness(voices, found) and overlaps(voices) == ""


def test_a_head_whose_units_were_shuffled_is_the_same_head() -> None:
    first, _ = text_voices()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    shuffled = copy.deepcopy(first.blocks)
    with torch.no_grad():
        for block in shuffled:
            block.ffn.gate.weight.copy_(block.ffn.gate.weight[order])
            block.ffn.up.weight.copy_(block.ffn.up.weight[order])
            block.ffn.down.weight.copy_(block.ffn.down.weight[:, order])

    def forward(inputs: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
        # Its own blocks in the place of the first's.
        handles = []
        for own, other in zip(first.blocks, shuffled, strict=True):
            handles.append(own.register_forward_hook(lambda _, given, out, other=other: other(*given)))
        try:
            return first.forward(inputs, documents)
        finally:
            for handle in handles:
                handle.remove()

    found = compare([first, Voice("shuffled", forward, shuffled)], tokens(), quiet)
    assert found.shared == 0
    for block in found.blocks:
        assert block.cka[0, 1] == pytest.approx(1.0, abs=1e-6)
        assert block.unit_cka is not None and block.unit_cka[0, 1] == pytest.approx(1.0, abs=1e-6)
        (matching,) = block.matchings
        assert torch.equal(order[matching.partner], torch.arange(24))
        assert matching.matched.min() > 0.999 > matching.same.mean()


def test_one_voice_and_heads_that_share_all_blocks() -> None:
    (alone,) = text_voices(TEXT.model_copy(update={"heads": 1}))
    found = compare([alone], tokens(), quiet)
    assert len(found.blocks) == 3 and not found.blocks[0].matchings
    assert "nothing to be compared with" in likeness([alone], found)
    same = text_voices(TEXT.model_copy(update={"blocks_in_head": 0}))
    found = compare(same, tokens(), quiet)
    assert (found.shared, found.blocks, found.samples) == (3, [], 0)
    assert "All blocks are shared" in likeness(same, found)


def test_only_the_chosen_tokens_are_read_and_maps_become_a_grid() -> None:
    first, _ = text_voices()
    (every,), (some,) = (
        activations(first, [unit_site(first.blocks[2])], tokens(rows)) for rows in (None, torch.tensor([0, 7, 79]))
    )
    assert torch.equal(some, every[[0, 7, 79, 80, 87, 159]])
    maps = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    table = table_of(maps)
    assert table.shape == (2, 16, 3)
    assert table[1, 5, 2] == maps[1, 2, 2:4, 2:4].mean()
    assert table_of(torch.ones(2, 3, 2, 1)).shape == (2, 2, 3)
    assert spaced(10, 4).tolist() == [0, 2, 5, 7] and spaced(3, 4).tolist() == [0, 1, 2]


def test_sites_of_networks_of_pictures_are_their_channels() -> None:
    section = ModelSection(family="resnet20", classes=3, heads=2, blocks_in_head=1)
    voices = voices_of(build(section), section, ["a", "b"])
    assert own_from(voices) == 8
    assert unit_site(voices[0].blocks[8]) == block_site(voices[0].blocks[8])
    pictures = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = compare(voices, [Batch(pictures)], quiet)
    assert found.samples == 6 and found.blocks[0].unit_cka is None
    assert found.blocks[0].units[0].shape == (6, 9, 64)


def test_topologies_that_are_complements_do_not_overlap() -> None:
    mask = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.5
    shared = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.5
    whole, first = torch.ones(9, dtype=torch.bool), text_voices()[0]
    children = [
        replace(first, name=name, masks={"trunk.a": shared, "head.b": own, "head.c": whole.clone()})
        for name, own in (("one", mask), ("other", ~mask))
    ]
    (found,) = layer_overlaps([replace(first, name="parent", speaks=False), *children])
    assert (found.name, found.units, found.density, found.jaccard) == ("head.b", 400, 0.5, (0.0, 0.0, 0.0))
    assert found.expected == pytest.approx(1 / 3, abs=0.01)
    assert layer_overlaps(children[:1]) == []
    assert "head.b" in overlaps(children)
