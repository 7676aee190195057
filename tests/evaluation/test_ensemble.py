"""launch/evaluate.py on an ensemble.json: every voice says what its checkpoint says alone, whatever the members are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.asked import Options
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.run import run
from nt_pretrain.methods.manifest import NAME
from nt_pretrain.parallel.mesh import connect
from tests.conftest import Corpus
from tests.evaluation.members import CHECKPOINT, ensemble_of, write_members
from tests.evaluation.test_pictures import prepared
from tests.evaluation.test_run import launch
from tests.gloo import run_ranks

pytestmark = pytest.mark.timeout(300)

TINY = "configs/tiny.yaml"

MEMBERS = {
    "first": ["model.heads=1", "model.blocks_in_head=0"],
    "twin": ["model.heads=1", "model.blocks_in_head=1", "run.seed=1"],
    "wide": ["model.heads=2", "model.hidden=48", "sparsity.density=0.3"],
    "dense": ["model.heads=1", "model.layers=2", "sparsity.density=1.0", "run.seed=2"],
}


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members of other depths, widths, cuts and densities, and one of longer sequences."""
    folder = tmp_path_factory.mktemp("ensemble")
    members = {str(folder / "members" / name): [*corpus.overrides, *more] for name, more in MEMBERS.items()}
    members[str(folder / "members" / "long")] = [*corpus.overrides, "data.sequence_length=48"]
    run_ranks(write_members, 1, members, TINY, timeout=120)
    ensemble_of(folder, {name: f"members/{name}" for name in MEMBERS})
    return folder


def evaluated(
    rank: int, world: int, asked: dict[str, str], harms: str | None = None, samples: int = 0, norms: int = 0
) -> dict[str, tuple[list[str], bytes]]:
    """For every target the lines for people and the record, written to the folder given beside it."""
    found = {}
    for words, out in asked.items():
        chosen = chosen_of(words, ["run.threads_per_rank=1"], data=None, samples=samples)
        lines: list[str] = []
        options = Options(Path(out), None, 0.2, None, harms=harms, norms=norms)
        run(chosen, options, connect(chosen.config), lines.append)
        found[words] = (lines, (Path(out) / "evaluation.json").read_bytes())
    return found


def test_every_voice_says_what_its_checkpoint_says_alone(folder: Path, tmp_path: Path) -> None:
    manifest = str(folder / NAME)
    alone = {str(folder / "members" / name): str(tmp_path / name) for name in MEMBERS}
    (found,) = run_ranks(evaluated, 1, {manifest: str(tmp_path / "all"), **alone}, timeout=200)
    lines, text = found[manifest]
    record = json.loads(text)
    names = ["first", "twin", "wide.head_0", "wide.head_1", "dense"]
    assert record["voices"] == names and record["heads"] == 5
    assert list(record["members"]) == [*names, "ensemble", "ensemble_logit", "mean_head"]
    for name in names:
        member, _, head = name.partition(".")
        own = json.loads(found[str(folder / "members" / member)][1])["members"][head or "head_0"]
        assert record["members"][name] == own, name
    assert record["members"]["ensemble"]["nll"] < record["members"]["mean_head"]["nll"]
    assert record["set"]["disagreement"] > 0.1, "members that nobody trained choose differently"
    assert [each["name"] for each in record["ensemble_of"]] == list(MEMBERS)
    assert [each["name"] for each in record["asked"]["members"]] == list(MEMBERS)
    shown = "\n".join(lines)
    assert f"{folder.name}, ensemble of 4: " in shown and "\n  wide, head 1 " in shown and "\n  twin " in shown
    assert (tmp_path / "all" / "disagreement.png").stat().st_size > 5_000
    # Nobody's layers are all the others': some are dense, some wider.
    assert record["mask_overlap"] is None and any("not compared" in note for note in record["notes"])
    (two,) = {each[manifest][1] for each in run_ranks(evaluated, 2, {manifest: str(tmp_path / "two")}, timeout=200)}
    assert two == text


def test_layers_of_one_shape_are_compared_wherever_the_trunk_ends(folder: Path, tmp_path: Path) -> None:
    members = {"first": "members/first", "twin": "members/twin", "again": "members/first"}
    (folder / "same").mkdir(exist_ok=True)
    manifest = ensemble_of(folder / "same", {name: f"../{path}" for name, path in members.items()})
    asked = {str(manifest): str(tmp_path)}
    (found,) = run_ranks(evaluated, 1, asked, "weight_dropout", 4, timeout=200)
    record = json.loads(found[str(manifest)][1])
    overlap = record["mask_overlap"]
    assert overlap["jaccard"][0][2] == 1.0 and record["disagreement"][0][2] == 0.0
    assert overlap["jaccard"][0][1] == pytest.approx(overlap["expected"][0][1], rel=0.1)
    assert [row["lost"] for row in record["robustness"]["lost_heads"]] == [0, 1, 2]
    # Weights of members are dropped independently, also of those that are alike.
    harmed = record["robustness"]["harms"][-1]["values"]
    assert harmed["first"]["nll"] != harmed["again"]["nll"]
    assert record["members"]["first"] == record["members"]["again"]
    assert "again" in "\n".join(found[str(manifest)][0])


def test_a_subset_of_heads(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    shutil.copytree(folder / "members", tmp_path / "members")
    manifest = ensemble_of(
        tmp_path / "some", {"wide": "../members/wide", "twin": "../members/twin"}, wide={"heads": [1]}
    )
    assert chosen_of(str(manifest), [], data=None, samples=0).voices == ["wide.head_1", "twin"]
    asked = {str(manifest): str(tmp_path / "1"), str(tmp_path / "members" / "wide"): str(tmp_path / "2")}
    (found,) = run_ranks(evaluated, 1, asked, None, 4, timeout=200)
    some, whole = (json.loads(text)["members"] for _, text in found.values())
    assert some["wide.head_1"] == whole["head_1"] and "wide.head_0" not in some
    manifest = ensemble_of(tmp_path / "some", {"wide": "../members/wide"}, wide={"heads": [2]})
    with pytest.raises(ConfigErrors, match=r"member wide: heads \[2\]: it has heads 0 to 1"):
        chosen_of(str(manifest), [], data=None, samples=0)


def test_the_command_takes_a_run_with_an_ensemble_and_says_so(folder: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "edst"
    shutil.copytree(folder / "members" / "first", run_folder)
    shutil.copytree(folder / "members", run_folder / "members")
    ensemble_of(run_folder, {"own": ".", "twin": "members/twin"})
    done = launch(str(run_folder), "--samples", "4", "--calibrate", "0", "run.threads_per_rank=1")
    assert done.returncode == 0, done.stderr
    assert (
        f"{run_folder}/{NAME}: an ensemble of 2 members; for one checkpoint name it, as {run_folder}/checkpoints"
        in (done.stdout)
    )
    assert done.stdout.splitlines()[-1].startswith(f"next: python launch/report.py {run_folder}")
    record = json.loads((run_folder / "evaluation" / "ensemble" / "evaluation.json").read_text())
    assert record["voices"] == ["own", "twin"]
    one = chosen_of(str(run_folder / CHECKPOINT), [], data=None, samples=0)
    assert one.manifest is None and one.voices == ["head_0"]
    # A run that is its own one member is measured as any run.
    ensemble_of(run_folder, {"dense": "."})
    assert chosen_of(str(run_folder), [], data=None, samples=0).manifest is None
    assert chosen_of(str(run_folder / NAME), [], data=None, samples=0).voices == ["dense"]


def test_members_of_pictures(tmp_path: Path) -> None:
    data = prepared(tmp_path / "pictures", 3, 0)
    config = tmp_path / "pictures.yaml"
    config.write_text(
        "model: {family: resnet20, classes: 3}\n"
        "sparsity: {density: 0.5}\n"
        "train: {steps: 3, global_batch: 8, micro_batch: 4}\n"
        "optim: {algorithm: sgd}\n"
        f"data: {{path: {data}, picture_size: 16, picture_shorter: 18, lanes: 8, window: 4, workers: 0}}\n"
        "eval: {sequences: 0, micro_batch: 8}\n"
    )
    options = {"one": [], "two": ["model.heads=2", "model.blocks_in_head=3", "run.seed=1"]}
    run_ranks(write_members, 1, {str(tmp_path / name): more for name, more in options.items()}, str(config), timeout=60)
    manifest = str(ensemble_of(tmp_path, {name: name for name in options}))
    (found,) = run_ranks(evaluated, 1, {manifest: str(tmp_path / "plain")}, None, 9, 8, timeout=120)
    record = json.loads(found[manifest][1])
    assert record["voices"] == ["one", "two.head_0", "two.head_1"] and record["norms_measured_on"] == 8
    assert all(0 < record["members"][voice]["ece_classwise"] < 1 for voice in record["voices"])
    jaccard, expected = (record["mask_overlap"][kind] for kind in ("jaccard", "expected"))
    assert jaccard[0][1] == pytest.approx(expected[0][1], rel=0.1)
    assert jaccard[1][2] > 1.05 * expected[1][2], "two heads have a trunk in common"


def test_members_that_are_not_what_was_listed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "members", tmp_path / "members")
    manifest = ensemble_of(tmp_path, {"a": "members/first", "b": "members/twin"})

    def choose() -> None:
        chosen_of(str(manifest), [], data=None, samples=0)

    choose()
    shutil.rmtree(tmp_path / "members" / "twin" / CHECKPOINT)
    shutil.copytree(folder / "members" / "first" / CHECKPOINT, tmp_path / "members" / "twin" / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"member b: .* is not the checkpoint that was put into the ensemble"):
        choose()
    (tmp_path / "members" / "twin" / CHECKPOINT / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"member b: .*manifest.json is damaged"):
        choose()
    shutil.rmtree(tmp_path / "members" / "twin")
    with pytest.raises(CheckpointError, match=r"member b: there is no .*members/twin/config.yaml"):
        choose()
    ensemble_of(tmp_path, {"ensemble": "members/first"})
    with pytest.raises(ConfigErrors, match="names ensemble cannot be told from others"):
        choose()
    with pytest.raises(ConfigErrors, match="there is no such ensemble"):
        chosen_of(str(tmp_path / "nowhere" / NAME), [], data=None, samples=0)


def test_members_of_other_data_are_refused_with_the_difference(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "members", tmp_path / "members")
    manifest = ensemble_of(tmp_path, {"first": "members/first", "long": "members/long"})
    with pytest.raises(ConfigErrors, match="sequence_length of first is 32, of long 48"):
        chosen_of(str(manifest), [], data=None, samples=0)
    moved = tmp_path / "members" / "twin" / "config.yaml"
    text = moved.read_text()
    config = next(line for line in text.splitlines() if line.startswith("  path: "))
    moved.write_text(text.replace(config, "  path: /elsewhere/data"))
    manifest = ensemble_of(tmp_path, {"first": "members/first", "twin": "members/twin"})
    with pytest.raises(ConfigErrors, match=r"data.path of first is .*, of twin /elsewhere/data; give --data DIR"):
        chosen_of(str(manifest), [], data=None, samples=0)
    named = chosen_of(str(manifest), [], data="data/other", samples=0)
    assert {each.config.data.path for each in named.speakers} == {"data/other"}
    assert {each.config.model.blocks_in_head for each in named.speakers} == {0, 1}
    pictures = (Path(__file__).resolve().parents[2] / "configs" / "images_small.yaml").read_text()
    moved.write_text(pictures)
    with pytest.raises(ConfigErrors, match=r"first \(llama\) is of tokens, twin \(resnet20\) of pictures"):
        chosen_of(str(manifest), [], data=None, samples=0)
