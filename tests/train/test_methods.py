"""Every method on two ranks: what it leaves behind, its defining property, and the same again after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nt_pretrain.checkpoint.folders import folder_name
from nt_pretrain.checkpoint.manifest import STATE
from nt_pretrain.evaluation.chosen import checkpoint_hash
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus, command
from tests.gloo import RanksFailed
from tests.train.method_runs import (
    assert_same_ensembles,
    die_amid,
    manifest,
    member,
    outside,
    tensors,
    topology,
    train,
    train_with_a_kill,
)


def both(corpus: Corpus, folder: Path, options: list[str], *, kill_after: int) -> Path:
    """One run undisturbed, one killed and resumed: identical. Returns the folder of the first."""
    options = [*corpus.overrides, *options]
    train(folder / "undisturbed", options)
    train_with_a_kill(folder / "killed", options, kill_after)
    assert_same_ensembles(folder / "undisturbed", folder / "killed")
    return folder / "undisturbed"


def next_position(folder: Path, step: int) -> dict[str, Any]:
    state = json.loads((RunDir(folder).checkpoints / folder_name(step) / STATE).read_bytes())
    return dict(state["position"])


def names(folder: Path) -> list[str]:
    return [each.name for each in manifest(folder).members]


def test_edst_tickets_differ_after_an_escape_killed_in_phase_three_of_five(corpus: Corpus, tmp_path: Path) -> None:
    run = both(corpus, tmp_path, ["method.name=edst", "method.members=4", "train.steps=40"], kill_after=24)
    assert names(run) == ["ticket_0", "ticket_1", "ticket_2", "ticket_3"]
    resumed = next(line for line in read_lines(RunDir(tmp_path / "killed").events) if line["kind"] == "resume")
    third = next(
        line for line in read_lines(RunDir(run).events) if line["kind"] == "phase" and "phase 3 of 5" in line["reason"]
    )
    assert resumed["step"] > third["step"], "it was killed in the middle of the third phase"
    first, second = (topology(run, name) for name in ("ticket_0", "ticket_1"))
    assert _moved(first, second) > 0.2


def test_an_escape_moves_what_its_rate_says_and_no_rate_moves_nothing(corpus: Corpus, tmp_path: Path) -> None:
    """The trap: with a gradient that was masked before, q = 0.5, 0.2 and 0 gave identical runs (FreeTickets)."""
    shares = []
    for rate in (0.0, 0.2, 0.8):
        options = ["method.name=edst", "method.members=2", "train.steps=9", "sparsity.update_every=1000"]
        train(tmp_path / f"{rate}", [*corpus.overrides, *options, f"method.escape_rate={rate}"])
        shares.append(_moved(*(topology(tmp_path / f"{rate}", name) for name in ("ticket_0", "ticket_1"))))
    # Were gradients of no account, q (1 - d) / ((1 - d) + q d) of the active weights of a layer would move: 0.17 and
    # 0.44 at density 0.5, less in the denser ones.
    assert shares[0] == 0.0
    assert 0.05 < shares[1] < 0.25 < shares[2] < 0.6, shares


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the active weights of layers that are not full that are gone."""
    sparse = [name for name in before if not before[name].all()]
    gone = sum(int((before[name] & ~after[name]).sum()) for name in sparse)
    return gone / sum(int(before[name].sum()) for name in sparse)


def test_dst_members_are_independent_and_alike_on_any_number_of_ranks(corpus: Corpus, tmp_path: Path) -> None:
    options = ["method.name=dst_ensemble", "method.members=2", "train.steps=12", "parallel.deterministic_reduce=true"]
    run = both(corpus, tmp_path, options, kill_after=17)
    train(tmp_path / "alone", [*corpus.overrides, *options], ranks=1)
    assert_same_ensembles(run, tmp_path / "alone")
    first, second = topology(run, "member_0"), topology(run, "member_1")
    for name in first:
        assert int(first[name].sum()) == int(second[name].sum()), "counts are exact"
        if not first[name].all():
            assert not torch.equal(first[name], second[name])
    assert manifest(run).members[0].made["seed"] != manifest(run).members[1].made["seed"]


def test_children_of_one_parent_are_complements_and_disjoint_parts(corpus: Corpus, tmp_path: Path) -> None:
    options = ["method.tune_share=0.25", "method.parent_share=0.5", "method.members=4"]
    run = both(corpus, tmp_path, [*options, "method.name=prune_and_tune"], kill_after=21)
    children = [topology(run, name) for name in ("child_0", "child_1", "child_2", "child_3")]
    for name in children[0]:
        for first, second in (children[:2], children[2:]):
            assert torch.equal(first[name], ~second[name]), "a pair partitions its parent"
        assert not torch.equal(children[0][name], children[2][name])
        assert abs(int(children[0][name].sum()) - children[0][name].numel() / 2) <= 0.5
    # Where the data stands after each: the next samples are none that it was trained on.
    after = [next_position(run / each.path, each.step) for each in [*manifest(run).others, *manifest(run).members]]
    assert len({json.dumps(each, sort_keys=True) for each in after}) == len(after)
    weights = member(run, "child_0")
    for name, active in children[0].items():
        assert not weights[f"model.{name}"][~active].any(), "and is zero elsewhere"
    # The parent is given this time: the one just made.
    given = [*corpus.overrides, "method.name=subnetworks", "method.members=3", f"method.parent={run}/members/parent"]
    train(tmp_path / "parts", [*given, "method.tune_share=0.25"])
    parts = [topology(tmp_path / "parts", name) for name in names(tmp_path / "parts")]
    for name in parts[0]:
        assert (sum(part[name].int() for part in parts) == 1).all(), "each weight has one child"
        counts = [int(part[name].sum()) for part in parts]
        assert max(counts) - min(counts) <= 1
    parents = {each.made["parent_sha256"] for each in manifest(tmp_path / "parts").members}
    assert parents == {each.sha256 for each in manifest(run).others}


@pytest.mark.parametrize("form", ["temperature", "random"])
def test_annealed_masks_reach_the_target_exactly(corpus: Corpus, tmp_path: Path, form: str) -> None:
    options = ["method.name=subnetworks", "method.members=2", "method.parent_share=0.2", "method.tune_share=0.5"]
    options += [f"method.annealing={form}", "method.annealing_share=0.75", "checkpoint.keep=99", "train.ema_decay=0.5"]
    # The parent has 5 steps; child_0 has 12, of which 9 are annealed, and is killed amid them.
    run = both(corpus, tmp_path, options, kill_after=10)
    resumed = next(line for line in read_lines(RunDir(tmp_path / "killed").events) if line["kind"] == "resume")
    assert 5 < resumed["step"] < 14
    counts = {step: outside(tensors(RunDir(run).checkpoints, step)) for step in (9, 12, 15)}
    assert counts[9] > 0 and counts[12] > 0 and counts[15] == 0, "the annealing ended after step 14"
    first, second = (topology(run, name) for name in names(run))
    assert all(torch.equal(first[name], ~second[name]) for name in first)
    assert outside(member(run, "child_0")) == outside(member(run, "child_1")) == 0


def test_annealed_children_of_a_sparse_parent_stay_inside_of_it(corpus: Corpus, tmp_path: Path) -> None:
    """Weights that the parent does not have take no part in an annealing either, killed amid it or not."""
    train(tmp_path / "sparse", [*corpus.overrides, "method.name=static", "train.steps=4", "sparsity.scope=no_vocab"])
    parent = topology(tmp_path / "sparse", "static")
    options = ["method.name=subnetworks", "method.members=2", "method.tune_share=0.5"]
    options += [f"method.parent={tmp_path}/sparse", "method.annealing=temperature", "method.annealing_share=0.75"]
    options += ["checkpoint.keep=99"]
    run = both(corpus, tmp_path, options, kill_after=5)
    # Of 12 steps of child_0 the first 9 are annealed.
    amid = tensors(RunDir(run).checkpoints, 6)
    beyond = {name: amid[f"model.{name}"][~active] for name, active in parent.items()}
    assert sum(int(each.count_nonzero()) for each in beyond.values()) == 0
    children = [topology(run, name) for name in names(run)]
    for name, active in parent.items():
        assert torch.equal(children[0][name] | children[1][name], active), "they partition the parent"
        counts = [int(child[name].sum()) for child in children]
        assert sum(counts) == int(active.sum()) and abs(counts[0] - counts[1]) <= 1


def test_while_masks_are_drawn_averages_are_measured_in_the_target_too(corpus: Corpus, tmp_path: Path) -> None:
    options = ["method.name=subnetworks", "method.members=2", "method.parent_share=0.2", "method.tune_share=0.5"]
    options += [
        "method.annealing=temperature",
        "method.annealing_share=1.0",
        "eval.every_steps=4",
        "checkpoint.keep=99",
    ]
    # So short an average is the weights themselves.
    train(tmp_path / "run", [*corpus.overrides, *options, "train.ema_decay=1e-9"])
    lines = [line for line in read_lines(RunDir(tmp_path / "run").metrics) if "validation/loss_ensemble" in line]
    assert [line["step"] for line in lines] == [4, 5, 8, 12, 16, 17, 20, 24, 28, 29]
    for line in lines:
        assert line["validation_ema/loss_ensemble"] == pytest.approx(line["validation/loss_ensemble"], rel=1e-5)
    # So does the command that measures a checkpoint from amid them, saved at step 12 as all are trained.
    checkpoint, validated = RunDir(tmp_path / "run").checkpoints / folder_name(12), lines[3]["validation/loss_ensemble"]
    for more in ([], ["--average"]):
        out = tmp_path / f"found{len(more)}"
        command("launch/evaluate.py", str(checkpoint), "--samples", "4", "--calibrate", "0", "--out", str(out), *more)
        found = json.loads((out / "evaluation.json").read_text())
        assert found["members"]["ensemble"]["nll"] == pytest.approx(validated, rel=1e-5), more


def test_an_annealing_that_ends_by_a_changed_option_leaves_nothing_outside(corpus: Corpus, tmp_path: Path) -> None:
    options = ["method.name=subnetworks", "method.members=2", "method.parent_share=0.2", "method.tune_share=0.5"]
    options = [*corpus.overrides, *options, "checkpoint.keep=99", "method.annealing=temperature"]
    run = tmp_path / "run"
    train(run, [*options, "method.annealing_share=0.75"])
    before = member(run, "child_0")
    for path in RunDir(run).checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > 9:
            shutil.rmtree(path)
    train(run, [*options, "method.annealing_share=0.25", "optim.lr=1e-4"])
    after = member(run, "child_0")
    assert outside(after) == 0
    assert any(not torch.equal(before[name], after[name]) for name in before), "the member is this attempt's"


def test_a_child_goes_on_with_the_parent_it_began_with(corpus: Corpus, tmp_path: Path) -> None:
    parents = [tmp_path / "elsewhere" / name for name in ("one", "other")]
    for number, parent in enumerate(parents):
        train(parent, [*corpus.overrides, "method.name=dense", "train.steps=4", f"run.seed={number}"], ranks=1)
    # Paths between folders do not go through links.
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "deep")
    run = tmp_path / "runs" / "run"
    options = [*corpus.overrides, "method.name=prune_and_tune", "method.members=2", "method.tune_share=0.25"]
    options.append("checkpoint.keep=99")
    rundir = RunDir(parents[0])
    ended = rundir.read_status()
    assert ended is not None
    rundir.write_status(replace(ended, state="running"))
    with pytest.raises(RanksFailed, match=r"one is still running, at step 4 of 4, .* name a checkpoint instead: .*04"):
        train(run, [*options, f"method.parent={parents[0]}"], ranks=1)
    rundir.write_status(ended)
    train(run, [*options, f"method.parent={parents[0]}"], ranks=1)
    assert {each.made["parent_sha256"] for each in manifest(run).members} == {manifest(run).others[0].sha256}

    for path in RunDir(run).checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > 6:
            shutil.rmtree(path)  # as killed at the end of child_0
    with pytest.raises(RanksFailed, match=r"other is not .*one, which .*ensemble.json lists as parent"):
        train(run, [*options, f"method.parent={parents[1]}"], ranks=1)
    moved = tmp_path / "moved"
    (tmp_path / "elsewhere").rename(moved)
    train(run, [*options, f"method.parent={moved / 'one'}"], ranks=1)
    assert {each.made["parent_sha256"] for each in manifest(run).members} == {manifest(run).others[0].sha256}
    assert manifest(run).members[1].made["parent"] == str(moved / "one")


def test_members_begun_with_other_options_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    """Half of a pair of complements is no use beside another mask."""
    options = [*corpus.overrides, "method.name=prune_and_tune", "method.members=2", "train.steps=20"]
    options += ["method.parent_share=0.2", "method.tune_share=0.2"]
    train(tmp_path / "run", [*options, "checkpoint.keep=9"], ranks=1)
    last = RunDir(tmp_path / "run").checkpoints / folder_name(12)
    shutil.rmtree(last)  # as if it had been killed amid the second child
    for change, words in (
        ("method.masks=random", "method.masks antirandom -> random"),
        ("run.seed=5", "run.seed 0 -> 5"),
    ):
        with pytest.raises(RanksFailed, match=words):
            train(tmp_path / "run", [*options, change], ranks=1)
    train(tmp_path / "run", options, ranks=1)


def test_magnitude_children_keep_the_largest_weights_of_the_parent(corpus: Corpus, tmp_path: Path) -> None:
    options = ["method.name=prune_and_tune", "method.members=2", "method.masks=magnitude", "method.child_density=0.25"]
    train(tmp_path / "run", [*corpus.overrides, *options, "method.tune_share=0.1"])
    parent, first = member(tmp_path / "run", "parent"), topology(tmp_path / "run", "child_0")
    for name, active in first.items():
        size = parent[f"model.{name}"].abs()
        assert int(active.sum()) == round(0.25 * active.numel())
        assert size[active].min() >= size[~active].max()
    assert all(torch.equal(active, topology(tmp_path / "run", "child_1")[name]) for name, active in first.items())


def test_noise_moves_exactly_some_weights_of_a_parent_on_any_number_of_ranks(corpus: Corpus, tmp_path: Path) -> None:
    options = ["method.name=subnetworks", "method.sample=noise", "method.noise_density=0.25", "method.members=2"]
    options += ["method.tune_share=0.25"]
    run = both(corpus, tmp_path, [*options, "method.parent_share=0.25"], kill_after=15)
    # A rate that moves nothing leaves children as they began.
    still = [*corpus.overrides, *options, f"method.parent={run}/members/parent", "method.tune_lr=1e-30"]
    for ranks in (1, 2):
        train(tmp_path / f"still{ranks}", still, ranks=ranks)
    parent = member(run, "parent")
    children = [member(tmp_path / "still2", name) for name in ("child_0", "child_1")]
    for name, before in parent.items():
        moved = [child[name] != before for child in children]
        wanted = round(0.25 * before.numel()) if before.ndim > 1 else 0
        assert [int(each.sum()) for each in moved] == [wanted, wanted], name
        if wanted:
            noise = (children[0][name] - before)[moved[0]]
            assert 0.2 < noise.std() / before.square().mean().sqrt() < 0.4, "sigma is 0.3 of the root mean square"
            assert not torch.equal(moved[0], moved[1])
        assert torch.equal(member(tmp_path / "still1", "child_0")[name], children[0][name])
    assert manifest(run).members[0].made["noise"]["density"] == 0.25


def test_members_that_are_gone_are_made_again_to_the_bit(corpus: Corpus, tmp_path: Path) -> None:
    options = [*corpus.overrides, "method.name=prune_and_tune", "method.members=2", "train.steps=20"]
    options += ["method.parent_share=0.2", "method.tune_share=0.3", "train.ema_decay=0.5"]
    run = tmp_path / "run"
    train(run, options)
    children = [each.name for each in manifest(run).members]
    before = {name: member(run, name) for name in ("parent", *children)}
    metrics = RunDir(run).metrics.read_bytes()
    # A child alone, amid the making of which all ranks are killed; then both, with the parent they need.
    shutil.rmtree(run / "members" / "child_0")
    die_amid(run, options, RunDir(run / "members" / ".child_0").metrics, 8)
    amid = run / "members" / ".child_0"
    shutil.copytree(amid, tmp_path / "amid")
    listed = (run / "ensemble.json").read_text()
    train(run, options)
    assert manifest(run).members[0].made["again"] == "the same to the bit"
    assert not amid.exists()
    # As killed between the writing of the member and of the manifest, which knows another; and just after both.
    (run / "ensemble.json").write_text(listed)
    shutil.copytree(tmp_path / "amid", amid)
    train(run, options)
    (child, *_) = manifest(run).members
    assert child.sha256 == checkpoint_hash(RunDir(run / child.path).checkpoints / folder_name(child.step))
    shutil.copytree(tmp_path / "amid", amid)
    train(run, options)
    assert manifest(run).members[0] == child and not amid.exists(), "nothing is made, nothing is left"
    # Only the checkpoint this time.
    shutil.rmtree(RunDir(run / child.path).checkpoints / folder_name(child.step))
    shutil.rmtree(run / "members" / "parent")
    train(run, options)
    assert [each.name for each in manifest(run).members] == children, "in the order they had"
    made = manifest(run).members[0].made
    assert (made["again"], made["sha256_before"][1:]) == ("the same to the bit", [child.sha256])
    for name, tensors_before in before.items():
        after = member(run, name)
        assert after.keys() == tensors_before.keys()
        assert not [key for key in after if not torch.equal(after[key], tensors_before[key])], name
    assert RunDir(run).metrics.read_bytes() == metrics, "what the run itself has written stays"


def test_sparse_parents_that_would_be_filled_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    train(tmp_path / "sparse", [*corpus.overrides, "method.name=static", "train.steps=4"], ranks=1)
    options = ["method.name=subnetworks", "method.sample=noise", f"method.parent={tmp_path}/sparse"]
    with pytest.raises(RanksFailed, match=r"is sparse \(.* active units\), and method.sample: noise moves"):
        train(tmp_path / "run", [*corpus.overrides, *options], ranks=1)
    # Nor may matrices that children have whole be filled again.
    options = ["method.name=prune_and_tune", f"method.parent={tmp_path}/sparse"]
    with pytest.raises(RanksFailed, match=r"is sparse in \S+ \(.* active units\), which children have whole"):
        train(tmp_path / "other", [*corpus.overrides, *options], ranks=1)
    blocks = ["method.name=static", "train.steps=4", "sparsity.unit=16", "sparsity.scope=no_vocab"]
    train(tmp_path / "blocks", [*corpus.overrides, *blocks], ranks=1)
    # One that was refused does not stand in the way of another.
    options = ["method.name=prune_and_tune", f"method.parent={tmp_path}/blocks"]
    with pytest.raises(RanksFailed, match=r"has sparsity\.unit 16 and sparsity\.backend masked; children are cut of"):
        train(tmp_path / "other", [*corpus.overrides, *options], ranks=1)


@pytest.mark.parametrize(("name", "members"), [("snapshot", ["snapshot_0", "snapshot_1"]), ("fge", ["fge_0", "fge_1"])])
def test_members_of_one_dense_run_are_taken_where_the_rate_is_lowest(
    corpus: Corpus, tmp_path: Path, name: str, members: list[str]
) -> None:
    run = both(
        corpus,
        tmp_path,
        [f"method.name={name}", "method.members=2", "method.start=0.5"][: 3 if name == "fge" else 2],
        kill_after=19,
    )
    assert names(run) == members
    rates = {line["step"]: line["optim/lr"] for line in read_lines(RunDir(run).metrics) if "optim/lr" in line}
    for each in manifest(run).members:
        assert rates[each.step] == min(rate for step, rate in rates.items() if abs(step - each.step) <= 2)
        assert rates.get(each.step + 2, 1.0) > 2 * rates[each.step], "and rises after it"
    one, other = (member(run, each) for each in members)
    assert any(not torch.equal(one[key], other[key]) for key in one)
