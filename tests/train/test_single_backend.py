"""Single weights in slots of their own do what dense matrices with masks do."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from nt_pretrain.config.mesh import mesh_sizes
from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.sparsity.budget import plan_budgets
from nt_pretrain.sparsity.csr_layers import single_layers
from nt_pretrain.sparsity.kernels.csr_slots import CsrSlots
from nt_pretrain.train.memory import checkpoint_bytes, estimate
from nt_pretrain.train.state import fresh_state
from tests.gloo import run_ranks
from tests.train.worlds import Trace, tiny, train_rank

SINGLE = {"unit": 1, "density": 0.4, "update_every": 3, "prune_rate": 0.5}
RULES: dict[str, dict[str, Any]] = {
    "gradient": {"sparsity": {"grow": "gradient"}},
    "soft": {"sparsity": {"drop": "soft_magnitude", "grow_random_share": 0.4, "just_dropped": "zero"}},
    "exclude, some layers full": {"sparsity": {"density": 0.9, "just_dropped": "exclude", "grown_moments": "zero"}},
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


def held_bytes(rank: int, world: int, config: Config) -> dict[str, int]:
    """What this rank holds, and what a checkpoint has of it."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    lists = [x for each in single_layers(state.model).values() for x in lists_of(each.layout)]
    topology = [*(x.ids for x in state.singles.values()), *(x.explored for x in state.singles.values()), *lists]
    topology += [flags for x in state.layers for flags in (x.active, x.explored)]
    return {
        "weights": bytes_of(list(state.optimizer.shards.values())),
        "topology": bytes_of(topology),
        "checkpoint": bytes_of(list(state.checkpoint_tensors().values())),
    }


def lists_of(layout: CsrSlots | None) -> list[Tensor]:
    assert layout is not None
    sides = layout.indices().forward, layout.indices().backward
    return [each for side in sides for each in (side.index, side.slots)]


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


@pytest.mark.parametrize("world", [1, 2])
def test_the_plan_knows_what_ranks_hold(world: int) -> None:
    config = tiny(sparsity={**SINGLE, "density": 0.9, "backend": "block"})
    shapes = shapes_of(config.model)
    budgets = plan_budgets(shapes, config.sparsity)
    assert any(budget.active == budget.units for budget in budgets.values()), "some stay dense"
    planned = estimate(config, shapes, budgets, mesh_sizes(config, world), accumulation=1)
    held = run_ranks(held_bytes, world, config)[0]
    assert planned.weights == pytest.approx(held["weights"], abs=4 * len(shapes))
    assert planned.topology == pytest.approx(held["topology"], abs=16 * len(shapes))
    if world == 1:
        assert checkpoint_bytes(config, shapes, budgets) == held["checkpoint"]
    dense = tiny(sparsity=SINGLE)
    assert planned.moments < estimate(dense, shapes, budgets, mesh_sizes(dense, world), accumulation=1).moments
