"""Methods of several phases on pictures: what is a member's own is its running statistics too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.data.photos import CLASSES
from tests.train.method_runs import (
    assert_same_ensembles,
    manifest,
    member,
    topology,
    train,
    train_with_a_kill,
)

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
