"""Methods of one phase on two ranks: the same again after a kill between two topology updates, and what each one is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nt_pretrain.config.load import load_config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.sparsity.budget import plan_budgets
from tests.conftest import Corpus
from tests.train.launches import digests, losses
from tests.train.method_runs import (
    assert_same_ensembles,
    manifest,
    outside,
    tensors,
    train,
    train_with_a_kill,
)

Tensors = dict[str, Tensor]
Trained = Callable[[str], Path]

METHODS = ("dense", "treenet", "neurotrails", "set", "rigl", "static", "deep_ensemble")
STEPS = 10
OPTIONS = [
    f"train.steps={STEPS}", "sparsity.update_every=3", "sparsity.prune_rate=0.2", "checkpoint.save_every_steps=4",
    "checkpoint.keep=9", "model.blocks_in_head=1", "method.joint=true",
]  # fmt: skip


def options_of(name: str, corpus: Corpus) -> list[str]:
    return [*corpus.overrides, f"method.name={name}", *OPTIONS[: None if name == "deep_ensemble" else -1]]


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run of a method that nobody disturbs, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def trained(name: str) -> Path:
        train(folder / name, options_of(name, corpus))
        return folder / name

    return trained


def at(run: Path, step: int = STEPS) -> Tensors:
    return tensors(RunDir(run).checkpoints, step)


def part(kind: str, found: Tensors) -> Tensors:
    """The ``model``, ``active`` or ``explored`` ones, by name of the parameter."""
    return {key.removeprefix(f"{kind}."): x for key, x in found.items() if key.startswith(f"{kind}.")}


def matrices(found: Tensors) -> Tensors:
    return {name: x for name, x in part("model", found).items() if x.ndim > 1}


def of_heads(found: Tensors) -> list[Tensors]:
    """What stands in each head, in order, by name within the head."""
    numbers = sorted({name.split(".")[1] for name in found if name.startswith("heads.")})
    prefixes = [f"heads.{number}." for number in numbers]
    return [{name.removeprefix(p): x for name, x in found.items() if name.startswith(p)} for p in prefixes]


def assert_all_differ(heads: list[Tensors]) -> None:
    """No two of three heads have a tensor in common."""
    assert len(heads) == 3 and heads[0]
    for one, other in combinations(heads, 2):
        assert one.keys() == other.keys() and not [name for name in one if torch.equal(one[name], other[name])]


def topology(found: Tensors, kind: str = "active") -> Tensors:
    return {name: x.bool() for name, x in part(kind, found).items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", METHODS)
def test_killed_between_two_updates_and_the_same_again(
    corpus: Corpus, undisturbed: Trained, tmp_path: Path, name: str
) -> None:
    run = undisturbed(name)
    went_on = train_with_a_kill(tmp_path / "killed", options_of(name, corpus), 5)
    assert went_on in (4, 8), "updates are at 3, 6 and 9"
    assert_same_ensembles(run, tmp_path / "killed")
    assert digests(run) == digests(tmp_path / "killed")
    assert list(digests(run)) == ([3, 6, 9] if name in ("neurotrails", "set", "rigl") else [])
    (alone,) = manifest(run).members
    assert (alone.name, alone.path, alone.step) == (name, ".", STEPS), "the run itself is all that speaks"
    assert outside(at(run)) == 0


@pytest.mark.timeout(300)
def test_dense_is_one_head_of_all_weights(undisturbed: Trained) -> None:
    found = at(undisturbed("dense"))
    assert not topology(found) and len(of_heads(part("model", found))) == 1
    assert all(weights.all() for weights in matrices(found).values())


@pytest.mark.timeout(300)
def test_treenet_is_a_dense_trunk_and_dense_heads_that_differ(undisturbed: Trained) -> None:
    found = at(undisturbed("treenet"))
    assert not topology(found) and all(weights.all() for weights in matrices(found).values())
    assert _blocks(found, "trunk.") == {"0", "1"}
    heads = of_heads(matrices(found))
    assert all(_blocks(found, f"heads.{number}.") == {"0"} for number in range(3))
    assert_all_differ(heads)


@pytest.mark.timeout(300)
def test_neurotrails_shares_a_trunk_and_its_heads_have_topologies_of_their_own_of_exact_counts(
    undisturbed: Trained,
) -> None:
    run = undisturbed("neurotrails")
    config = load_config(RunDir(run).config, [])
    model = config.model.model_copy(update={"heads": 3})
    budgets = plan_budgets(shapes_of(model), config.sparsity)
    sparse = [name for name, budget in budgets.items() if budget.active < budget.units]
    by_step = {step: topology(at(run, step)) for step in (4, 8, STEPS)}
    for active in by_step.values():
        assert {name: int(x.sum()) for name, x in active.items()} == {name: x.active for name, x in budgets.items()}
    first, last = by_step[4], by_step[STEPS]
    assert sparse and not [name for name in sparse if torch.equal(first[name], last[name])], "all of them evolve"
    assert _blocks(at(run), "trunk.") == {"0", "1"}, "there once, for all heads"
    heads = of_heads({name: last[name] for name in sparse})
    assert_all_differ(heads)


@pytest.mark.timeout(300)
def test_static_sparse_training_never_changes_its_topology(undisturbed: Trained) -> None:
    run = undisturbed("static")
    active, explored = topology(at(run)), topology(at(run), "explored")
    assert any(not x.all() for x in active.values())
    for other in (explored, topology(at(run, 4)), topology(at(run, 8))):
        assert active.keys() == other.keys()
        assert not [name for name in active if not torch.equal(active[name], other[name])]


@pytest.mark.timeout(300)
def test_set_grows_anywhere_and_rigl_where_there_is_a_gradient(undisturbed: Trained) -> None:
    """Three runs that are one until the first update, at step 3."""
    runs = {name: undisturbed(name) for name in ("static", "set", "rigl")}
    begun = {name: [loss for _, loss, _ in losses(run)[:3]] for name, run in runs.items()}
    assert begun["static"] == begun["set"] == begun["rigl"]
    first = topology(at(runs["static"], 4))
    sparse = [name for name in first if not first[name].all()]
    grown = {}
    for method in ("set", "rigl"):
        after = at(runs[method], 4)
        active, explored = topology(after), topology(after, "explored")
        assert {name: int(x.sum()) for name, x in active.items()} == {name: int(x.sum()) for name, x in first.items()}
        grown[method] = {name: explored[name] & ~first[name] for name in sparse}
        assert all(x.any() for x in grown[method].values())
    # Units that both grew are as many as chance has it, of all that were free.
    both = sum(int((grown["set"][name] & grown["rigl"][name]).sum()) for name in sparse)
    sizes = {name: [int(x[name].sum()) for x in grown.values()] for name in sparse}
    chance = sum(one * other / int((~first[name]).sum()) for name, (one, other) in sizes.items())
    assert 0.7 * chance < both < 1.3 * chance
    # A row of the embedding has a gradient only if its token was read.
    name = "trunk.embedding.weight"
    read = part("second_moment", at(runs["static"], 4))[name].any(1)
    assert not grown["rigl"][name][~read].any()
    assert int(grown["set"][name][~read].sum()) > 0.2 * sizes[name][0]


@pytest.mark.timeout(300)
def test_members_of_a_joint_deep_ensemble_share_nothing(undisturbed: Trained) -> None:
    found = at(undisturbed("deep_ensemble"))
    assert not topology(found) and not [name for name in part("model", found) if not name.startswith("heads.")]
    heads = of_heads(matrices(found))
    assert_all_differ(heads)
    whole = matrices(at(undisturbed("dense")))
    assert all(len(head) == len(whole) for head in heads), "each is a whole dense model"


def _blocks(found: Tensors, prefix: str) -> set[str]:
    """Numbers of the blocks below ``prefix``."""
    blocks = f"{prefix}blocks."
    return {name.removeprefix(blocks).split(".")[0] for name in part("model", found) if name.startswith(blocks)}
