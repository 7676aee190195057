"""Records of blocks: any ranks read what any ranks wrote, and the masked backend reads them too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.sparsity.block_checkpoint import (
    BlockRecord,
    layer_of_records,
    masked_of_records,
    record_of,
    record_of_masked,
)
from nt_pretrain.sparsity.block_topology import BlockLayer, draw_layer
from nt_pretrain.sparsity.block_update import BlockTensors, block_norms, choose_blocks, move_blocks
from tests.sparsity.blocks import NAME, budget_of, budgets, dense_of, divided, whole


def used(budget, seed: int = 0) -> tuple[BlockLayer, dict[str, torch.Tensor]]:
    """A layer after two updates: slots are in no order any more."""
    layer = whole(budget, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (*layer.columns.shape, budget.unit, budget.unit)
    tensors = {kind: torch.randn(shape, generator=generator) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    options = SparsitySection(density=0.5, unit=16, grow="random", grown_moments="zero")
    for step in (1, 2):
        move = choose_blocks(
            layer, block_norms(tensors["weight"]), None, sparsity=options, prune_rate=0.5, seed=seed, step=step
        )
        move_blocks(layer, move, BlockTensors(*tensors.values()))
    tensors["weight"] += 1.0  # grown blocks are trained
    return layer, tensors


def held_by(layer, tensors, lines) -> tuple[BlockLayer, dict[str, torch.Tensor]]:
    part = BlockLayer(layer.name, layer.budget, lines, layer.columns[lines], layer.explored[lines])
    return part, {kind: tensor[lines] for kind, tensor in tensors.items()}


@settings(max_examples=60, deadline=None)
@given(budgets(), st.integers(0, 20), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 4]))
def test_any_ranks_read_what_any_ranks_wrote(budget, seed, writers, readers):
    layer, tensors = used(budget, seed)
    records = [record_of(*held_by(layer, tensors, lines)) for lines in divided(budget.lines, writers)]
    for record in records:
        assert torch.equal(record.ids, record.ids.sort(dim=1).values)
    for lines in divided(budget.lines, readers):
        read, values = layer_of_records(NAME, budget, lines, records[::-1])
        assert torch.equal(read.columns, layer.columns[lines]), "slots too: sums are added in their order"
        assert torch.equal(read.explored, layer.explored[lines]) and read.columns.dtype == torch.int32
        for kind, tensor in tensors.items():
            assert torch.equal(values[kind], tensor[lines]) and values[kind].is_contiguous()


@settings(max_examples=60, deadline=None)
@given(budgets(), st.integers(0, 20), st.sampled_from([1, 3]))
def test_masked_and_back(budget, seed, writers):
    layer, tensors = used(budget, seed)
    records = [record_of(*held_by(layer, tensors, lines)) for lines in divided(budget.lines, writers)]
    active, explored, dense = masked_of_records(NAME, budget, records)
    assert torch.equal(active.view(budget.rows, budget.columns), layer.to_table())
    assert int(explored.sum()) == int(layer.explored.sum()) and bool((active <= explored).all())
    for kind, tensor in tensors.items():
        assert torch.equal(dense[kind], dense_of(layer, tensor))
    # As a checkpoint of the masked backend has them: one byte a block.
    record = record_of_masked(NAME, budget, active.view(torch.uint8), explored.view(torch.uint8), dense)
    read, values = layer_of_records(NAME, budget, layer.lines, [record])
    assert torch.equal(read.columns, layer.columns.sort(dim=1).values)
    assert read.digest() == layer.digest() and torch.equal(read.explored, layer.explored)
    for kind, tensor in tensors.items():
        assert torch.equal(dense_of(read, values[kind]), dense_of(layer, tensor))


def test_both_balances_are_one_form():
    """A table that is constant both ways: what rows wrote as masked, columns read."""
    rows, columns = budget_of(4, 4, 2), budget_of(4, 4, 2, balance="col")
    active = torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).roll(1, 0)
    weight = torch.randn(8, 8) * active.repeat_interleave(2, 0).repeat_interleave(2, 1)
    by_row, by_column = (
        record_of_masked(NAME, budget, active.view(-1), active.view(-1), {"weight": weight})
        for budget in (rows, columns)
    )
    assert sorted(by_row.ids.view(-1).tolist()) == sorted(by_column.ids.view(-1).tolist())
    for number in by_row.ids.view(-1).tolist():
        blocks = [record.tensors["weight"][record.ids == number] for record in (by_row, by_column)]
        assert torch.equal(*blocks), "[outputs, inputs] inside a block in both"
    for budget, record in ((rows, by_row), (columns, by_column)):
        assert torch.equal(masked_of_records(NAME, budget, [record])[2]["weight"], weight)
    with pytest.raises(ValueError, match=r"lie in different block columns; it was written with the other balance"):
        layer_of_records(NAME, columns, torch.arange(4), [by_row])


def test_a_masked_table_that_is_not_constant_says_how_it_is_not():
    budget = budget_of(4, 6, 2)
    layer, tensors = used(budget)
    dense = {kind: dense_of(layer, tensor) for kind, tensor in tensors.items()}
    active = layer.to_table()
    active[1] = torch.tensor([True, False, True, True, False, True])
    with pytest.raises(ValueError) as caught:
        record_of_masked(NAME, budget, active.view(-1), active.view(-1), dense)
    assert str(caught.value) == (
        f"{NAME}: the block backend needs 2 active blocks in each block row, and 1 of 4 have others, from 2 to 4; the "
        "first is block row 1 with 4. A table of the masked backend can be read as blocks only if its block rows have "
        "as many active blocks each"
    )


def test_moments_that_blocks_cannot_keep_are_refused():
    budget = budget_of(4, 6, 2)
    layer, tensors = used(budget)
    dense = {kind: dense_of(layer, tensor) for kind, tensor in tensors.items()}
    dense["exp_avg"] = torch.ones(budget.shape)
    flags = layer.to_table().view(-1)
    with pytest.raises(ValueError, match=r"64 numbers of exp_avg outside of the active blocks are not zero.*warm"):
        record_of_masked(NAME, budget, flags, flags, dense)
    with pytest.raises(ValueError, match=r"weight has shape \[12, 8\], \[8, 12\] expected"):
        record_of_masked(NAME, budget, flags, flags, {"weight": dense["weight"].T})


def test_records_that_do_not_fit_say_why():
    budget = budget_of(6, 6, 2)
    layer, tensors = used(budget)
    parts = [record_of(*held_by(layer, tensors, lines)) for lines in divided(6, 3)]
    with pytest.raises(ValueError, match=r"2 of 6 lines are not once in the records; the first is line 2, .* 0 times"):
        layer_of_records(NAME, budget, layer.lines, [parts[0], parts[2]])
    with pytest.raises(ValueError, match=r"the first is line 0, which is there 2 times"):
        layer_of_records(NAME, budget, layer.lines, [*parts, parts[0]])
    with pytest.raises(ValueError, match=r"the record has 2 active blocks in each line, and the run 3; density"):
        layer_of_records(NAME, budget_of(6, 6, 3), layer.lines, parts)
    with pytest.raises(ValueError, match="no record"):
        layer_of_records(NAME, budget, layer.lines, [])
    bare = BlockRecord(parts[1].ids, parts[1].slots, parts[1].explored, {"weight": parts[1].tensors["weight"]})
    with pytest.raises(ValueError, match="records hold different tensors"):
        layer_of_records(NAME, budget, layer.lines, [parts[0], bare, parts[2]])


def test_a_run_goes_on_from_a_record_as_if_it_had_not_stopped():
    budget = budget_of(9, 7, 3)
    layer, tensors = used(budget)
    record = record_of(layer, tensors)
    again, values = layer_of_records(NAME, budget, layer.lines, [record])
    options = SparsitySection(density=0.5, unit=16, drop="soft_magnitude")
    scores = torch.rand(9, 7, generator=torch.Generator().manual_seed(5))
    for each, held in ((layer, tensors), (again, values)):
        norms = block_norms(held["weight"])
        move = choose_blocks(each, norms, scores, sparsity=options, prune_rate=0.5, seed=1, step=9)
        move_blocks(each, move, BlockTensors(*held.values()), second_moment=0.25)
    assert torch.equal(layer.columns, again.columns) and torch.equal(layer.positions, again.positions)
    assert all(torch.equal(tensors[kind], values[kind]) for kind in tensors)
    assert not torch.equal(layer.columns, draw_layer(NAME, budget, layer.lines, seed=0).columns)
