"""What must be the same at every world size, on real ranks."""

import pytest

from tests.gloo import run_ranks
from tests.train.worlds import tiny, train_rank

RULES = {
    "gradient": {},
    "blocks": {"unit": 16, "scope": "no_vocab", "drop": "soft_magnitude"},
    "random": {"grow": "random", "just_dropped": "exclude", "distribution": "uniform"},
    "falling density": {"density": 0.3, "density_schedule": "linear", "density_start": 0.8, "grow_random_share": 0.3},
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES)
def test_deterministic_reduce_makes_runs_bit_identical(rule):
    config = tiny(sparsity=RULES[rule])
    alone = run_ranks(train_rank, 1, config, timeout=120)[0]
    assert len(set(alone.digests)) == 4, "three topology updates"
    for world in (2, 4):
        for trace in run_ranks(train_rank, world, config, timeout=120):
            assert trace == alone, world


@pytest.mark.timeout(300)
def test_deterministic_reduce_in_bf16():
    config = tiny(train={"precision": "bf16"})
    alone = run_ranks(train_rank, 1, config, timeout=120)[0]
    assert run_ranks(train_rank, 4, config, timeout=120)[0] == alone


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "pure_bf16"])
def test_ordinary_runs_start_alike_and_stay_close(precision):
    """Same initial weights and first topology to the bit; losses within rounding until a near-tie may flip."""
    config = tiny(deterministic=False, train={"precision": precision}, steps=3)
    alone = run_ranks(train_rank, 1, config, timeout=120)[0]
    for world in (2, 4):
        trace = run_ranks(train_rank, world, config, timeout=120)[0]
        assert (trace.first_weights, trace.first_topology) == (alone.first_weights, alone.first_topology)
        bound = 1e-5 if precision == "fp32" else 2e-2
        for here, there in zip(trace.values, alone.values, strict=True):
            assert abs(here - there) <= bound * abs(there)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", [{"grow": "momentum", "grown_moments": "warm"}, {"grown_moments": "zero"}])
def test_parity_rules_run_sharded(rule):
    config = tiny(sparsity=rule)
    alone = run_ranks(train_rank, 1, config, timeout=120)[0]
    assert run_ranks(train_rank, 2, config, timeout=120)[0] == alone


@pytest.mark.timeout(300)
def test_a_deep_ensemble_and_a_single_model_train_sharded():
    for model in (
        {"blocks_in_head": 3},
        {"heads": 1, "blocks_in_head": 0},
        {"blocks_in_head": 0, "document_mask": True},
    ):
        config = tiny(model=model)
        alone = run_ranks(train_rank, 1, config, timeout=120)[0]
        assert run_ranks(train_rank, 2, config, timeout=120)[0] == alone
