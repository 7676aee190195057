"""Both backends do the same thing: dense matrices with masks, and layers of which only the active blocks exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.change import growth_scores
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients
from tests.gloo import run_ranks
from tests.train.worlds import SEQUENCES, Trace, sequences, tiny, train_rank

LINES = {"unit": 16, "balance": "line", "density": 0.5, "update_every": 3, "prune_rate": 0.5}
RULES: dict[str, dict[str, Any]] = {
    "gradient": {"sparsity": {"grow": "gradient"}},
    "random in fp64": {"sparsity": {"grow": "random", "scope": "no_vocab"}, "train": {"precision": "fp64"}},
    "soft": {"sparsity": {"drop": "soft_magnitude", "grow_random_share": 0.4, "just_dropped": "zero"}},
    "exclude": {"sparsity": {"just_dropped": "exclude", "grown_moments": "zero", "density": 0.4}},
    "sgd": {"optim": {"algorithm": "sgd", "lr": 0.1}, "train": {"ema_decay": 0.9}},
}


def trained(rule: str, backend: str, world: int) -> Trace:
    sections = RULES[rule] | {"sparsity": LINES | RULES[rule].get("sparsity", {}) | {"backend": backend}}
    return run_ranks(train_rank, world, tiny(deterministic=True, **sections), timeout=120)[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=[] if rule in ("gradient", "random in fp64") else [pytest.mark.long]) for rule in RULES],
)
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


def scores_of_a_step(rank: int, world: int, config: Config) -> dict[str, Tensor]:
    """Of the first update, the lines of this rank."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    tokens, documents = sequences(1)
    mine = slice(rank * SEQUENCES // world, (rank + 1) * SEQUENCES // world)
    scores = growth_scores(state, config, ranks, 3)
    assert scores is not None
    accumulate_gradients(state.model, config, Inputs.of_text(tokens[mine], documents[mine]), ranks, scores)
    return scores.found


@pytest.mark.timeout(120)
def test_scores_in_bf16_are_exact_ones_but_for_its_rounding() -> None:
    configs = [tiny(deterministic=exact, sparsity=LINES | {"backend": "block"}) for exact in (True, False)]
    exact, rough = (run_ranks(scores_of_a_step, 2, config, timeout=100) for config in configs)
    for one, other in zip(exact, rough, strict=True):
        assert one.keys() == other.keys()
        assert any(values.numel() for values in one.values())
        # Products of numbers that were rounded to 8 bits, rounded themselves; a block's norm is of 256 of them.
        assert all(torch.allclose(other[name], values, rtol=2**-6, atol=0) for name, values in one.items())
    assert any(not torch.equal(rough[0][name], values) for name, values in exact[0].items())
