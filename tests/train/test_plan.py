"""Every derived number of a run, and how it is shown."""

from __future__ import annotations

import pytest

from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config, SparsitySection
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.train.phase_plan import heaviest, render_run
from nt_pretrain.train.plan import make_plan, readable_bytes, render

CONFIG = Config.model_validate(
    {
        "run": {"name": "small"},
        "model": dict(
            vocab_size=100, hidden=32, intermediate=48, layers=4, attention_heads=4, heads=3, blocks_in_head=2
        ),
        "sparsity": {"density": 0.5, "update_every": 10},
        "train": {"steps": 100, "global_batch": 32, "micro_batch": 4, "steps_over_density": True},
        "optim": {"warmup_steps": 5},
        "data": {"sequence_length": 16},
    }
)


def test_numbers() -> None:
    plan = make_plan(CONFIG, 2)
    block = 4 * 32 * 32 + 3 * 32 * 48
    matrices = 8 * block + 4 * 100 * 32
    assert plan.accounts.all.total == matrices + 16 * 32 + 3 * 32
    assert plan.accounts.sparse.total == matrices
    assert abs(plan.accounts.sparse.active - matrices / 2) <= 40
    assert plan.single == 4 * block + 2 * 100 * 32 + 8 * 32 + 32
    assert (plan.sequences_per_rank, plan.accumulation, plan.lanes) == (16, 4, 32)
    assert (plan.total_steps, plan.warmup_steps, plan.topology_updates) == (200, 10, 20)
    assert (plan.samples_per_step, plan.total_samples) == (512, 102_400)
    attention = 6 * 32 * 16 * 8
    assert plan.flops_per_sample_dense == 6 * (matrices - 100 * 32) + attention
    assert plan.flops_per_sample_active == 6 * plan.accounts.per_token.active + attention
    assert plan.total_flops_dense == plan.flops_per_sample_dense * 102_400
    assert plan.total_flops_active == plan.flops_per_sample_active * 102_400
    assert plan.start_density == 0.5


def test_a_dense_run_has_no_topology() -> None:
    plan = make_plan(CONFIG.model_copy(update={"sparsity": Config().sparsity}), 1)
    assert plan.topology_updates == 0 and plan.memory.topology == 0
    assert plan.accounts.all.active == plan.accounts.all.total
    assert plan.flops_per_sample_active == plan.flops_per_sample_dense


def test_text() -> None:
    text = render(make_plan(CONFIG, 2), CONFIG)
    lines = text.splitlines()
    assert lines[0] == "run small: 3 heads of 2 blocks on a trunk of 2, density 0.5 (erk, single weights, scope all)"
    assert "  model.hidden = 32 (default 768)" in lines
    words = [" ".join(line.split()) for line in lines]
    assert "parameters total active density" in words
    assert "attention 32,768 18,784 0.5732" in words
    assert "sequences per step 32 = 2 ranks x 4 micro-batches of 4" in words
    assert "steps 200, the first 10 of them warm-up" in words
    assert "topology updates 20, one every 10 steps" in words
    assert "memory per rank (estimate)" in words
    assert "\x1b" not in text and all(line == line.rstrip() for line in lines)


def test_blocks_that_alone_exist_are_what_is_executed_and_the_budget_by_line_is_shown() -> None:
    lines = {"density": 0.4, "unit": 16, "balance": "line"}
    plans, words = {}, {}
    for backend in ("masked", "block"):
        sparsity = SparsitySection.model_validate(lines | {"backend": backend})
        model = CONFIG.model.model_copy(update={"vocab_size": 160, "hidden": 64, "intermediate": 96})
        config = CONFIG.model_copy(update={"sparsity": sparsity, "model": model})
        plans[backend] = make_plan(config, 2)
        words[backend] = [" ".join(line.split()) for line in render(plans[backend], config).splitlines()]
    block, masked = plans["block"], plans["masked"]
    assert block.flops_per_sample_executed == block.flops_per_sample_active < block.flops_per_sample_dense
    assert masked.flops_per_sample_executed == masked.flops_per_sample_dense == block.flops_per_sample_dense
    assert [line for line in words["block"] if "executed" in line] == [
        f"{what}, active {count} (executed)"
        for what, count in (
            ("FLOPs per token", f"{block.flops_per_sample_active:.3e}".replace("+0", "")),
            ("FLOPs in all", f"{block.total_flops_active:.3e}".replace("+", "")),
        )
    ]
    assert all(", dense " in line for line in words["masked"] if "executed" in line)
    asked, became = block.by_line or (0.0, 0.0)
    assert masked.by_line == block.by_line and became == block.accounts.sparse.density
    assert asked == pytest.approx(0.4, abs=1e-4) and became != asked
    assert f"density by line {became:.4f} of the sparse layers, 0.4000 asked" in words["block"]
    assert words["block"][0].endswith(
        "density 0.4 (erk, blocks of 16 x 16, as many in every line, only active ones exist, scope all)"
    )
    assert "parameters dense active density" in words["block"]
    assert any(line.startswith("dense gradients while blocks grow") for line in words["block"])
    assert not any(line.startswith("dense gradients while blocks grow") for line in words["masked"])
    assert block.checkpoint_bytes < 0.5 * masked.checkpoint_bytes


def test_text_of_other_shapes() -> None:
    def first_line(**model: int) -> str:
        config = Config.model_validate({"model": {"vocab_size": 100, "hidden": 32, "attention_heads": 4, **model}})
        return render(make_plan(config, 1), config).splitlines()[0]

    assert first_line(layers=2) == "run run: one model of 2 blocks, dense"
    assert first_line(layers=2, heads=3, blocks_in_head=2) == "run run: a deep ensemble of 3 models of 2 blocks, dense"
    assert first_line(layers=2, heads=3) == "run run: 3 heads of 0 blocks on a trunk of 2, dense"


def test_a_density_schedule_is_shown() -> None:
    sparsity = CONFIG.sparsity.model_copy(update={"density_schedule": "linear"})
    config = CONFIG.model_copy(update={"sparsity": sparsity})
    text = render(make_plan(config, 2), config)
    assert "0.999 to 0.5" in text


def test_shares_of_a_mixture_are_shown() -> None:
    data = {
        "sources": {"web": "a", "books": "b"},
        "weights": {"web": 2.0, "books": 1.0},
        "curriculum": {50: {"web": 1.0}},
    }
    config = CONFIG.model_copy(update={"data": CONFIG.data.model_validate(data)})
    words = [" ".join(line.split()) for line in render(make_plan(config, 2), config).splitlines()]
    assert "sources books 33.3 %, web 66.7 %" in words
    assert "sources from step 50 web 100 %" in words


def test_readable_bytes() -> None:
    assert [readable_bytes(n) for n in (0, 999, 1000, 999_499, 999_600, 3_765_376_512, 10**15)] == [
        "0 B", "999 B", "1 kB", "999 kB", "1 MB", "3.77 GB", "1 PB",
    ]  # fmt: skip


def test_the_heaviest_phase_of_a_method_is_the_one_that_must_fit() -> None:
    found = load_config("configs/compare_tabular.yaml", ["method.name=prune_and_tune"])
    peaks = {phase.name: make_plan(phase.config, 1).memory.peak for phase in calendar_of(found)}
    assert peaks[heaviest(found, 1).name] == max(peaks.values()) > min(peaks.values())
    text = render_run(found, 1)
    assert all(f"  {name} " in text for name in peaks) and "phases of method prune_and_tune" in text
