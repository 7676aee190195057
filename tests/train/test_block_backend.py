"""Both backends do the same thing: dense matrices with masks, and layers of which only the active blocks exist."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gloo import run_ranks
from tests.train.worlds import Trace, tiny, train_rank

LINES = {"unit": 16, "balance": "line", "density": 0.5, "update_every": 3, "prune_rate": 0.5}
RULES: dict[str, dict[str, Any]] = {
    "gradient": {"sparsity": {"grow": "gradient"}},
    "random in fp64": {"sparsity": {"grow": "random", "scope": "no_vocab"}, "train": {"precision": "fp64"}},
    "soft": {"sparsity": {"drop": "soft_magnitude", "grow_random_share": 0.4, "just_dropped": "zero"}},
    "exclude": {"sparsity": {"just_dropped": "exclude", "grown_moments": "zero", "density": 0.4}},
    "sgd": {"optim": {"algorithm": "sgd", "lr": 0.1}, "train": {"ema_decay": 0.9}},
}


def trained(rule: str, backend: str, world: int, *, deterministic: bool = True) -> Trace:
    sections = RULES[rule] | {"sparsity": LINES | RULES[rule].get("sparsity", {}) | {"backend": backend}}
    return run_ranks(train_rank, world, tiny(deterministic=deterministic, **sections), timeout=120)[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES)
def test_losses_are_the_masked_ones_over_updates_and_the_ranks_make_no_bit_of_difference(rule: str) -> None:
    masked, one, four = trained(rule, "masked", 1), trained(rule, "block", 1), trained(rule, "block", 4)
    wide = "fp64" in rule
    assert len(set(masked.digests)) == 4, "three topology updates"
    assert (one.first_topology, one.digests) == (masked.first_topology, masked.digests)
    assert one.values == pytest.approx(masked.values, rel=1e-12 if wide else 2e-7)
    assert [float.fromhex(norm) for norm in one.norms] == pytest.approx(
        [float.fromhex(norm) for norm in masked.norms], rel=1e-10 if wide else 1e-5
    )
    assert four.digests == one.digests
    if wide:  # whose sums no wider type makes exact
        assert four.values == pytest.approx(one.values, rel=1e-12)
        return
    assert (four.losses, four.norms) == (one.losses, one.norms)
    assert (four.weights, four.average) == (one.weights, one.average)


@pytest.mark.timeout(120)
def test_scores_in_bf16_choose_the_blocks_that_exact_ones_choose_but_for_near_ties() -> None:
    exact, rough = trained("gradient", "block", 2), trained("gradient", "block", 2, deterministic=False)
    assert rough.digests[0] == exact.digests[0]
    assert rough.values[:3] == pytest.approx(exact.values[:3], rel=1e-6)
    assert rough.values == pytest.approx(exact.values, rel=2e-2)
