"""Methods on pictures: killed and the same again, and what is a member's own is its running statistics too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.data.photos import CLASSES
from tests.train.launches import digests
from tests.train.method_runs import (
    assert_same_ensembles,
    manifest,
    member,
    tensors,
    topology,
    train,
    train_with_a_kill,
)

Trained = Callable[[str], Path]

CONFIG = "configs/images_small.yaml"
OPTIONS = [
    f"model.classes={len(CLASSES)}", "model.channels=[4,4,6,8]", "train.micro_batch=2", "data.picture_size=16",
    "data.picture_shorter=16", "data.window=8", "eval.micro_batch=2", "sparsity.update_every=2",
]  # fmt: skip


@pytest.mark.timeout(300)
def test_children_of_a_network_for_pictures_are_complements_with_statistics_of_their_own(
    pictures: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, f"data.path={pictures}", "method.name=prune_and_tune", "method.members=2", "train.steps=12"]
    options += ["method.parent_share=0.5", "method.tune_share=0.5", "method.annealing=temperature"]
    train(tmp_path / "undisturbed", options, config=CONFIG)
    went_on = train_with_a_kill(tmp_path / "killed", options, 10, config=CONFIG)
    assert 6 <= went_on < 12, "amid the annealing of the first child"
    run = tmp_path / "undisturbed"
    assert_same_ensembles(run, tmp_path / "killed")
    first, second = (topology(run, name) for name in ("child_0", "child_1"))
    kernels = [name for name in first if "conv" in name]
    assert kernels and not any("output" in name for name in first), "the classifier stays whole"
    assert all(torch.equal(first[name], ~second[name]) for name in first)
    parent, one, other = (member(run, name) for name in ("parent", "child_0", "child_1"))
    statistics = [name for name in parent if name.endswith("running_mean")]
    assert statistics
    for name in statistics:
        assert not torch.equal(parent[name], one[name]) and not torch.equal(one[name], other[name])


@pytest.mark.timeout(300)
def test_tickets_of_a_network_for_pictures_differ_after_an_escape(pictures: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, f"data.path={pictures}", "method.name=edst", "method.members=2", "train.steps=9"]
    options += ["sparsity.density=0.3", "sparsity.scope=all", "sparsity.update_every=100"]
    train(tmp_path / "run", options, config=CONFIG)
    assert [each.name for each in manifest(tmp_path / "run").members] == ["ticket_0", "ticket_1"]
    first, second = (topology(tmp_path / "run", name) for name in ("ticket_0", "ticket_1"))
    sparse = [name for name in first if not first[name].all()]
    moved = sum(int((first[name] & ~second[name]).sum()) for name in sparse)
    assert moved > 0.2 * sum(int(first[name].sum()) for name in sparse)


METHODS = {
    "snapshot": (["snapshot_0", "snapshot_1"], ["method.members=2", "train.steps=10"]),
    "fge": (["fge_0", "fge_1"], ["method.members=2", "train.steps=10", "method.start=0.5"]),
    "deep_ensemble": (["member_0", "member_1"], ["method.members=2", "train.steps=5"]),
    "dst_ensemble": (["member_0", "member_1"], ["method.members=2", "train.steps=5", "sparsity.update_every=2"]),
    "set": (["set"], ["train.steps=10", "sparsity.update_every=4"]),
    "rigl": (["rigl"], ["train.steps=10", "sparsity.update_every=4"]),
}
"""Members and options of each: ten steps, of which the sixth is amid the second half."""


def options_of(name: str, pictures: Path) -> list[str]:
    options = [*OPTIONS, f"data.path={pictures}", f"method.name={name}", *METHODS[name][1]]
    return [*options, "optim.warmup_steps=1", "checkpoint.save_every_steps=6", "checkpoint.keep=9"]


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run of a method that nobody disturbs, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def trained(name: str) -> Path:
        train(folder / name, options_of(name, pictures), config=CONFIG)
        return folder / name

    return trained


ALIKE = ("deep_ensemble", "fge", "rigl")
"""Each shares its phases with another of these, and is killed on text too: killed here only by make test-long."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in METHODS]
)
def test_killed_on_pictures_and_the_same_again(pictures: Path, undisturbed: Trained, tmp_path: Path, name: str) -> None:
    run = undisturbed(name)
    assert train_with_a_kill(tmp_path / "killed", options_of(name, pictures), 7, config=CONFIG) == 6
    assert_same_ensembles(run, tmp_path / "killed")
    assert digests(run) == digests(tmp_path / "killed")
    members = METHODS[name][0]
    assert [each.name for each in manifest(run).members] == members
    found = [member(run, each) for each in members]
    statistics = [key for key in found[0] if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) == 2 * (1 + 9 * 2 + 2), "of the stem, two in each block and two beside blocks"
    for key in statistics:
        assert not torch.equal(found[0][key], torch.full_like(found[0][key], float(key.endswith("var")))), "it moved"
        assert len(found) == 1 or not torch.equal(found[0][key], found[1][key]), "each member has its own"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["snapshot", "fge"])
def test_members_of_one_run_on_pictures_are_taken_where_the_rate_is_lowest(undisturbed: Trained, name: str) -> None:
    run = undisturbed(name)
    rates = {line["step"]: line["optim/lr"] for line in read_lines(RunDir(run).metrics) if "optim/lr" in line}
    first, second = manifest(run).members
    assert second.step == 10 and rates[first.step - 1] > rates[first.step] < rates[first.step + 1]
    assert rates[first.step] == pytest.approx(rates[second.step])
    assert not any(key.startswith("active.") for key in member(run, first.name))


@pytest.mark.timeout(300)
def test_independent_members_on_pictures_have_seeds_and_sparse_ones_topologies_of_their_own(
    undisturbed: Trained,
) -> None:
    for name in ("deep_ensemble", "dst_ensemble"):
        run = undisturbed(name)
        first, second = manifest(run).members
        assert (first.step, second.step) == (5, 10) and first.made["seed"] != second.made["seed"]
        one, other = (topology(run, each.name) for each in (first, second))
        sparse = [key for key in one if not one[key].all()]
        assert bool(sparse) == (name == "dst_ensemble")
        assert [int(one[key].sum()) for key in one] == [int(other[key].sum()) for key in one], "counts are exact"
        assert not [key for key in sparse if torch.equal(one[key], other[key])]
    assert list(digests(undisturbed("dst_ensemble"))) == [2, 4, 7, 9]


@pytest.mark.timeout(300)
def test_set_and_rigl_grow_other_weights_of_kernels_in_exact_numbers(undisturbed: Trained) -> None:
    """They begin with the same topology, so that what both have explored beyond its number both have grown."""
    runs = {name: undisturbed(name) for name in ("set", "rigl")}
    assert all(list(digests(run)) == [4, 8] for run in runs.values())
    explored = [tensors(RunDir(run).checkpoints, 6) for run in runs.values()]
    last = {name: topology(run, name) for name, run in runs.items()}
    both = chance = 0.0
    for key, active in last["set"].items():
        count, free = int(active.sum()), int((~active).sum())
        for found in (explored[0][f"active.{key}"], explored[1][f"active.{key}"], last["rigl"][key]):
            assert int(found.sum()) == count, "exact"
        if free:
            one, other = (found[f"explored.{key}"].bool() for found in explored)
            both += int((one & other).sum()) - count
            chance += (int(one.sum()) - count) * (int(other.sum()) - count) / free
    assert chance > 100 and 0.7 * chance < both < 1.3 * chance
