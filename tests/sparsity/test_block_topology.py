"""Tables of blocks: constant in every line, the same on any ranks, known to the masked backend by the same digest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer, layer_of_table
from nt_pretrain.sparsity.topology import Held, empty_layer
from nt_pretrain.sparsity.topology import digest as masked_digest
from nt_pretrain.sparsity.update import draw as masked_draw
from tests.sparsity.blocks import NAME, budget_of, budgets, divided, whole


def masked_of(layer: BlockLayer):
    """The masked backend's layer with the same table; every rank holds all of it."""
    shape = layer.budget.shape
    held = Held(torch.arange(shape[0]), torch.arange(shape[1]), shape[1])
    masked = empty_layer(layer.name, layer.budget.as_layer_budget(), held)
    masked.active.copy_(layer.to_table().view(-1))
    return masked


def ensure_sound(layer: BlockLayer) -> None:
    budget = layer.budget
    assert layer.columns.dtype == torch.int32 and tuple(layer.columns.shape) == (layer.lines.numel(), budget.fan)
    assert all(len(set(row)) == budget.fan for row in layer.columns.tolist()), "a block stands in two slots"
    assert not layer.columns.numel() or 0 <= int(layer.columns.min()) <= int(layer.columns.max()) < budget.across
    assert bool((layer.active() <= layer.explored).all())
    flat = layer.columns.reshape(-1).tolist()
    for column in range(budget.across):
        listed = layer.positions[layer.starts[column] : layer.starts[column + 1]].tolist()
        assert listed == [at for at, value in enumerate(flat) if value == column]


@settings(max_examples=60, deadline=None)
@given(budgets(), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_first_topology_is_sound_and_the_same_on_any_ranks(budget, seed, parts):
    layer = whole(budget, seed)
    ensure_sound(layer)
    assert torch.equal(layer.explored, layer.active())
    shards = [draw_layer(NAME, budget, lines, seed=seed) for lines in divided(budget.lines, parts)]
    for shard in shards:
        ensure_sound(shard)
    assert torch.equal(torch.cat([shard.columns for shard in shards]), layer.columns)
    assert torch.equal(torch.cat([shard.ids() for shard in shards]), layer.ids())
    dimension = 0 if budget.balance == "row" else 1
    assert torch.equal(torch.cat([shard.to_table() for shard in shards], dimension), layer.to_table())
    assert layer.to_table().view(-1).nonzero().view(-1).tolist() == sorted(layer.ids().view(-1).tolist())
    total = sum(shard.digest() for shard in shards)
    masked = masked_digest(masked_of(layer))
    assert (total - masked) % (1 << 64) == 0 and layer.digest() == masked


def test_digest_tells_tables_apart_and_not_slots():
    budget = budget_of(6, 8, 3)
    layer = whole(budget)
    turned = BlockLayer(NAME, budget, layer.lines, layer.columns.flip(1).contiguous(), layer.explored)
    assert turned.digest() == layer.digest()
    assert whole(budget, seed=1).digest() != layer.digest()


def test_one_line_is_drawn_as_the_masked_backend_draws_it():
    layer = whole(budget_of(1, 40, 9), seed=5)
    masked = masked_of(layer)
    masked_draw([masked], seed=5, group=None)
    assert torch.equal(masked.active.view(1, 40), layer.to_table())


def test_draws_differ_between_layers_and_seeds_and_favour_no_column():
    budget = budget_of(400, 20, 5)
    lines = torch.arange(budget.lines)
    tables = [draw_layer(name, budget, lines, seed=seed).active() for name, seed in (("a", 0), ("b", 0), ("a", 1))]
    assert not torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    for table in tables:
        share = table.double().mean(0)
        assert float(share.min()) > 0.15 and float(share.max()) < 0.35  # 5 standard deviations about 1/4


@settings(max_examples=40, deadline=None)
@given(budgets(), st.sampled_from([1, 3]))
def test_tables_there_and_back(budget, parts):
    for lines in divided(budget.lines, parts):
        layer = draw_layer(NAME, budget, lines, seed=2)
        again = layer_of_table(NAME, budget, lines, layer.to_table())
        assert torch.equal(again.columns, layer.columns.sort(dim=1).values)
        assert torch.equal(again.to_table(), layer.to_table()) and torch.equal(again.explored, layer.explored)
        ensure_sound(again)


def test_a_table_that_is_not_constant_is_refused_with_numbers():
    budget = budget_of(4, 6, 2)
    layer = whole(budget)
    table = layer.to_table()
    table[2] = True
    with pytest.raises(
        ValueError, match=r"2 active blocks in each block row, and 1 of 4 have others, from 2 to 6; the fir"
    ):
        layer_of_table(NAME, budget, layer.lines, table)
    down = budget_of(4, 6, 2, balance="col")
    with pytest.raises(ValueError, match=r"block column 3 with 3"):
        table = whole(down).to_table()
        table[:, 3] = torch.tensor([True, True, True, False])
        layer_of_table(NAME, down, torch.arange(6), table)
    with pytest.raises(ValueError, match=r"table of blocks \[4, 6\] is given, \[2, 6\] expected"):
        layer_of_table(NAME, budget, torch.arange(2), table)
