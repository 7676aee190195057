"""The arithmetic of the forecast, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from nt_pretrain.config.schema import Config, SparsitySection
from nt_pretrain.rehearsal.forecast import HOP, LATENCY, RATE_SHARE, Assumptions, forecast
from nt_pretrain.rehearsal.machines import MACHINES, Machine
from nt_pretrain.rehearsal.step import RankMemory, Rehearsal
from nt_pretrain.rehearsal.watch import Sent
from nt_pretrain.train.plan import make_plan

MACHINE = Machine("h100-80g", memory=80e9, memory_rate=1e12, link=400e9, network=50e9)


def config(**parallel: object) -> Config:
    model = dict(vocab_size=1024, hidden=256, intermediate=640, layers=4, attention_heads=4, heads=2, blocks_in_head=2)
    return Config.model_validate(
        {
            "model": model,
            "sparsity": {"density": 0.5, "update_every": 10},
            "train": {"global_batch": 64, "micro_batch": 1},
            "data": {"sequence_length": 256},
            "checkpoint": {"save_every_steps": 100},
            "parallel": parallel,
        }
    )


def rehearsal(found: Config, world: int, **traffic: Sent) -> Rehearsal:
    memory = RankMemory(
        weights=400, moments=800, topology=200, gradients=400, kept=0, working=0, update=0, validation=0, snapshot=0
    )
    return Rehearsal(make_plan(found, world), memory, dict(traffic), Sent(1000, 24))


def test_products_run_at_a_share_of_the_peak() -> None:
    found = config()
    made = forecast(found, rehearsal(found, 8), MACHINE, Assumptions(efficiency=0.5))
    plan = make_plan(found, 8)
    assert made.compute == pytest.approx(plan.flops_per_sample_dense * 64 * 256 / 8 / (989.4e12 * 0.5))
    assert made.mfu < 0.5
    assert made.mfu == pytest.approx(0.5 * made.compute / made.step)


def test_blocks_take_active_operations_and_the_dense_gradients_of_updates() -> None:
    lines = {"density": 0.25, "unit": 16, "balance": "line", "update_every": 10}
    masked, block, by_chance = (
        config().model_copy(update={"sparsity": SparsitySection.model_validate(lines | more)})
        for more in ({}, {"backend": "block"}, {"backend": "block", "grow": "random"})
    )
    plan = make_plan(block, 8)
    found = forecast(block, rehearsal(block, 8), MACHINE, Assumptions(efficiency=0.5))
    peak = 989.4e12 * 0.5
    assert found.compute == pytest.approx(plan.flops_per_sample_active * 64 * 256 / 8 / peak)
    assert found.mfu == pytest.approx(0.5 * found.compute / found.step)
    assert found.compute < 0.5 * forecast(masked, rehearsal(masked, 8), MACHINE, Assumptions(efficiency=0.5)).compute
    cheap = forecast(by_chance, rehearsal(by_chance, 8), MACHINE, Assumptions(efficiency=0.5))
    dense = 2 * plan.accounts.sparse.total * 64 * 256 / 8 / peak
    assert found.update - cheap.update == pytest.approx(dense)


def test_recomputing_blocks_costs_a_forward_pass_of_them() -> None:
    plain, full, part = (
        forecast(each, rehearsal(each, 8), MACHINE, Assumptions())
        for each in (config(), config(activation_checkpoint="full"), config(activation_checkpoint="selective"))
    )
    assert plain.compute < part.compute < full.compute < 4 / 3 * plain.compute
    assert full.mfu < plain.mfu


@pytest.mark.parametrize(
    ("axis", "sizes", "rate", "hops"),
    [
        ("shard", {}, 400e9, 15),  # 16 ranks: two nodes, eight network links of 50 GB/s each way
        ("shard", {"tensor": 4}, 100e9, 3),  # two of four in each node
        ("replicate", {"replicate": 2}, 50e9, 2),  # one rank of each node; a tree up and down
        ("head", {"head": 2}, 400e9, 1),  # inside a node
    ],
)
def test_a_ring_is_as_fast_as_the_links_it_crosses(axis: str, sizes: dict[str, int], rate: float, hops: int) -> None:
    found = config(**sizes)
    made = forecast(found, rehearsal(found, 16, **{axis: Sent(10**9, 7)}), MACHINE, Assumptions())
    assert made.traffic[axis] == pytest.approx(1e9 / (rate * RATE_SHARE) + 7 * (LATENCY + hops * HOP))


def test_weights_hide_behind_products_and_heads_do_not() -> None:
    found = config(head=2, tensor=2)
    few = Sent(1, 1)
    hidden = forecast(found, rehearsal(found, 8, shard=few), MACHINE, Assumptions(efficiency=1e-3))
    assert hidden.exposed == 0.0
    waited = forecast(
        found, rehearsal(found, 8, shard=few, head=few, tensor=few), MACHINE, Assumptions(efficiency=1e-3)
    )
    assert waited.exposed == pytest.approx(2 * (LATENCY + HOP), rel=1e-3)
    much = Sent(10**12, 1)
    late = forecast(found, rehearsal(found, 8, shard=much), MACHINE, Assumptions())
    assert late.exposed == pytest.approx(late.traffic["shard"] - late.compute)


def test_updates_and_saves_are_spread_over_steps() -> None:
    found = config()
    made = forecast(found, rehearsal(found, 8), MACHINE, Assumptions(host=1e3))
    assert made.update_share == made.update / 10 > 0
    assert made.save_share == pytest.approx((400 + 800 + 200) / 1e3 / 100)
    assert made.step == pytest.approx(
        made.compute + made.optimizer + made.exposed + made.update_share + made.save_share
    )
    assert made.tokens_per_day == pytest.approx(64 * 256 / made.step * 86_400)
    dense = found.model_copy(update={"sparsity": found.sparsity.model_copy(update={"density": 1.0})})
    assert forecast(dense, rehearsal(dense, 8), MACHINE, Assumptions()).update == 0.0


def test_every_machine_has_a_peak() -> None:
    for name, machine in MACHINES.items():
        assert machine.name == name and machine.peak > 1e14
        assert machine.memory < 1e12 < 10 * machine.memory_rate
        assert dataclasses.replace(machine, network=1.0).network == 1.0
