"""Single weights in slots of their own do what dense matrices with masks do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gloo import run_ranks
from tests.train.worlds import Trace, tiny, train_rank

SINGLE = {"unit": 1, "density": 0.4, "update_every": 3, "prune_rate": 0.5}
RULES: dict[str, dict[str, Any]] = {
    "gradient": {"sparsity": {"grow": "gradient"}},
    "soft": {"sparsity": {"drop": "soft_magnitude", "grow_random_share": 0.4, "just_dropped": "zero"}},
    "exclude, some layers full": {"sparsity": {"density": 0.75, "just_dropped": "exclude", "grown_moments": "zero"}},
    "sgd without vocabulary": {
        "sparsity": {"scope": "no_vocab"}, "optim": {"algorithm": "sgd", "lr": 0.1}, "train": {"ema_decay": 0.9},
    },
}  # fmt: skip


def trained(backend: str, world: int, precision: str, sections: dict[str, Any]) -> Trace:
    sparsity = SINGLE | sections.get("sparsity", {}) | {"backend": backend}
    train = sections.get("train", {}) | {"precision": precision}
    return run_ranks(train_rank, world, tiny(**sections | {"sparsity": sparsity, "train": train}), timeout=120)[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("rule", "world"), [*zip(RULES, (1, 2, 4, 1), strict=True)])
def test_topologies_and_losses_are_the_masked_ones_over_updates(rule: str, world: int) -> None:
    """In double precision: in single precision some of ten thousand scores are so near one another that two ways to
    add up put them in another order.
    """
    masked, single = trained("masked", 1, "fp64", RULES[rule]), trained("block", world, "fp64", RULES[rule])
    assert len(set(masked.digests)) == 4, "three topology updates"
    assert (single.first_topology, single.digests) == (masked.first_topology, masked.digests)
    assert single.values == pytest.approx(masked.values, rel=1e-12)
    norms = [[float.fromhex(norm) for norm in run.norms] for run in (single, masked)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-10)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_the_ranks_make_no_bit_of_difference(grow: str) -> None:
    sections = {"sparsity": {"grow": grow, "grow_random_share": 0.2}, "train": {"ema_decay": 0.9}}
    one, four = trained("block", 1, "fp32", sections), trained("block", 4, "fp32", sections)
    assert len(set(one.digests)) == 4
    assert (four.losses, four.norms, four.digests) == (one.losses, one.norms, one.digests)
    assert (four.weights, four.average) == (one.weights, one.average)
    masked = trained("masked", 1, "fp32", sections)
    assert one.digests[:3] == masked.digests[:3] and one.values[:3] == pytest.approx(masked.values[:3], rel=2e-7)
    assert one.values == pytest.approx(masked.values, rel=1e-2)
