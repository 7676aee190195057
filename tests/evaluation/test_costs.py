"""Costs of what speaks: those of its configuration, of trainings that are known, and no figure where one is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.config.load import load_config, to_yaml
from nt_pretrain.diversity.section_costs import costs as section
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.cost_table import lines
from nt_pretrain.evaluation.costs import costs_of_chosen, steps_of
from nt_pretrain.methods.manifest import NAME, Ensemble, Member, read_ensemble, write_ensemble
from nt_pretrain.train.costs import costs_of, trained_until
from tests.evaluation.members import CHECKPOINT, ensemble_of, write_members
from tests.gloo import run_ranks

ROWS = "configs/synth_mlp.yaml"
DENSE = 2 * (32 * 64 + 64 * 64 + 64 * 10)
"""Operations of a row in one dense model, a forward pass."""
BIASES = 64 + 64 + 10
STEPS = 3
ALL = 3 * DENSE * 64
"""Of a step: forward and backward, of a batch."""

RUNS = {"one": ["run.seed=1"], "two": ["run.seed=2"], "heads": ["model.heads=2", "sparsity.density=0.25"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("costs")
    run_ranks(write_members, 1, {str(folder / name): more for name, more in RUNS.items()}, ROWS, timeout=60)
    return folder


def found(words: Path, *, passes: int = 1) -> dict[str, Any]:
    chosen = chosen_of(str(words), [], data=None, samples=0)
    return costs_of_chosen(chosen, steps_of(chosen), shared=(), passes=passes)


def test_a_checkpoint_costs_what_its_run_has_computed_until_then(folder: Path) -> None:
    costs = found(folder / "one")
    assert costs["members"]["one"] == {
        "parameters": {"total": DENSE // 2 + BIASES, "active": DENSE // 2 + BIASES},
        "inference": {"counted": DENSE, "executed": DENSE},
        "training": {"counted": STEPS * ALL, "executed": STEPS * ALL},
    }  # fmt: skip
    assert costs["ensemble"] == costs["members"]["one"]
    assert (costs["dense"]["steps"], costs["dense"]["training"]["executed"]) == (1860, 1860 * ALL)
    assert (costs["per"], costs["notes"]) == ("row", [])
    four = found(folder / "one", passes=4)
    assert four["members"]["one"]["inference"]["executed"] == 4 * DENSE
    assert four["members"]["one"]["training"] == costs["members"]["one"]["training"]
    assert "4 times" in lines(four)[0] and "times" not in lines(costs)[0]


def test_masks_are_counted_and_whole_matrices_executed(folder: Path) -> None:
    heads = found(folder / "heads")["members"]["heads"]
    whole = costs_of(load_config(folder / "heads" / "config.yaml", []))
    assert heads["inference"]["executed"] == whole.ensemble.inference.total
    assert heads["inference"]["counted"] < 0.5 * heads["inference"]["executed"]
    assert heads["training"]["counted"] < 0.5 * heads["training"]["executed"]


def test_runs_put_together_are_summed_and_share_their_beginnings(folder: Path) -> None:
    (folder / "both").mkdir()
    costs = found(ensemble_of(folder / "both", {"one": "../one", "two": "../two"}))
    assert costs["ensemble"]["inference"]["executed"] == 2 * DENSE
    assert costs["ensemble"]["training"] == {"counted": 2 * STEPS * ALL, "executed": 2 * STEPS * ALL}
    assert costs["dense"] is None and costs["notes"] == []
    manifest = ensemble_of(
        folder / "both", {"one": "../one", "again": "../one", "some": "../heads"}, some={"heads": [1]}
    )
    costs = found(manifest)
    heads = costs["members"]["some"]["training"]["executed"]
    assert costs["ensemble"]["training"]["executed"] == STEPS * ALL + heads
    assert costs["notes"] == ["some: of all its 2 heads, of which 1 speak"]


def test_what_was_not_trained_here_has_no_figure(folder: Path) -> None:
    (folder / "parts").mkdir()
    made = {
        "given": {"from": "runs/elsewhere"},
        "child": {"from": "clone", "phase": "child_1", "parent": "given"},
        "seed": {"from": "its seed", "phase": "member_1"},
    }
    paths = dict(zip(made, ("../one", "../two", "../heads"), strict=True))
    costs = found(ensemble_of(folder / "parts", paths, **{name: {"made": each} for name, each in made.items()}))
    rows = costs["members"]
    assert rows["given"]["training"] is None and costs["ensemble"]["training"] is None
    assert rows["child"]["training"]["executed"] == 1860 * ALL, "its own phase"
    assert costs["notes"] == [
        "given: its training is not known here",
        "child: began from finished models, whose training is not counted",
    ]
    assert "–: not known" in lines(costs)[0]
    page = section(str(folder / "parts" / NAME), [])
    assert "given: its training" in page and page.count("<tr>") == 1 + 3 + 1
    assert f"{DENSE:.3e}".replace("e+0", "e") in page


def test_an_ensemble_of_one_run_costs_all_phases_of_it_so_far(folder: Path, tmp_path: Path) -> None:
    run = load_config(ROWS, ["method.name=edst", "method.members=3", "sparsity.density=0.5", "train.steps=30"])
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    manifest = ensemble_of(tmp_path, {"ticket_1": str(folder / "one"), "ticket_2": str(folder / "two")})
    listed = read_ensemble(manifest)
    made = {"phase": "refine_1", "from": "the phase before"}
    members = [replace(each, made=made) for each in listed.members]
    write_ensemble(tmp_path, Ensemble({"name": "edst"}, "probability", members))
    costs = found(manifest)
    # Its checkpoints are of step 3: exploring has begun.
    counted, executed = trained_until(run, STEPS)
    assert costs["ensemble"]["training"] == {"counted": counted, "executed": executed}
    assert executed == STEPS * ALL and counted < executed
    whole = costs_of(run)
    assert trained_until(run, 30) == (whole.ensemble.training.active, whole.ensemble.executed)
    assert costs["dense"]["steps"] == 30
    given = load_config(ROWS, ["method.name=prune_and_tune", "method.members=2", "method.parent=runs/elsewhere"])
    (tmp_path / "config.yaml").write_text(to_yaml(given))
    write_ensemble(tmp_path, Ensemble({"name": "prune_and_tune"}, "probability", members))
    assert found(manifest)["notes"] == ["the training of runs/elsewhere, which the run was given, is not counted"]


def test_a_member_alone_is_what_its_run_lists(folder: Path, tmp_path: Path) -> None:
    """Named by its folder, a child is known to be one, and no run of its own."""
    member = tmp_path / "members" / "real"
    member.mkdir(parents=True)
    for each in (folder / "one").iterdir():
        (member / each.name).symlink_to(each)
    sha256 = read_ensemble(ensemble_of(tmp_path, {"real": "members/real"})).members[0].sha256
    listed = Member("real", "members/real", STEPS, sha256, made={"from": "clone", "phase": "child_0", "parent": "p"})
    write_ensemble(tmp_path, Ensemble({"name": "prune_and_tune"}, "probability", [listed]))
    costs = found(member / CHECKPOINT)
    assert costs["members"]["real"]["training"]["executed"] == 1860 * ALL
    assert costs["notes"] == ["real: began from finished models, whose training is not counted"]
