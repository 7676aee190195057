"""Ex uno plures on real ranks: parts of one model, the same on every mesh, and whole runs killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.checks import problems
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.phase import changed
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.clone import find_parent
from nt_pretrain.train.part import part_state
from nt_pretrain.train.state import TrainState, fresh_state, identity
from tests.conftest import Corpus
from tests.data.photos import CLASSES
from tests.gloo import run_ranks
from tests.train.method_runs import assert_same_ensembles, manifest, member, train, train_with_a_kill

Parts = list[dict[str, Tensor]]

LLAMA = dict(vocab_size=33, hidden=18, intermediate=27, layers=2, attention_heads=6, head_width=4, kv_heads=3)
RESNET = dict(family="resnet20", classes=5, channels=(7, 7, 8, 9), output_bias=True)


def made_by(model: dict[str, Any], **method: Any) -> Config:
    sections = {
        "model": model,
        "method": {"name": "ex_uno_plures", "members": 3} | method,
        "optim": {"warmup_steps": 1},
    }
    config = Config.model_validate(sections | {"train": {"steps": 9, "global_batch": 8, "micro_batch": 1}})
    assert not problems(config, world_size=2)
    return config


def whole(state: TrainState) -> dict[str, Tensor]:
    found = dict(state.parameters) | statistics_of(state.model)
    return {name: (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone() for name, x in found.items()}


def parts_rank(rank: int, world: int, config: Config) -> Parts:
    """The wider model, then every part of it, as all ranks together hold them; numbers of a checkpoint if given."""
    ranks = connect(config)
    parent = find_parent(Path(config.method.parent), ranks) if config.method.parent else None
    phases = [each for each in calendar_of(config) if each.speaks]
    wide = whole(fresh_state(phases[0].start.wide, ranks))
    return [wide, *(whole(part_state(phase, parent, "", ranks)) for phase in phases)]


def parent_rank(rank: int, world: int, config: Config, folder: str) -> dict[str, Tensor]:
    """A model of another seed, as if it had trained, saved."""
    ranks = connect(config)
    wide = changed(calendar_of(config).phases[0].start.wide, {"run.seed": 7})
    state = fresh_state(wide, ranks)
    for number, buffer in enumerate(statistics_of(state.model).values()):
        buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(number)))
    save(Path(folder), 1, state.checkpoint_tensors(), state.facts(ranks), identity=identity(wide, ""), group=None)
    return whole(state)


def assert_rows_are_dealt(parts: Parts, names: list[str]) -> None:
    """The rows of a matrix (the numbers of a vector) of all parts together are those of the whole, each once."""
    wide, *others = parts
    for name in names:
        expected = sorted(wide[name].view(len(wide[name]), -1).tolist())
        assert sorted(row for part in others for row in part[name].view(len(part[name]), -1).tolist()) == expected, name


@pytest.mark.timeout(200)
def test_parts_of_initial_values_are_disjoint_and_the_same_on_two_ranks() -> None:
    config = made_by(LLAMA, residual="whole", dealing="sequential")
    alone, two = (run_ranks(parts_rank, world, config)[0] for world in (1, 2))
    assert all(torch.equal(here[name], there[name]) for here, there in zip(alone, two, strict=True) for name in here)
    feed_forward = [name for name in alone[0] if "gate" in name or "up" in name]
    assert_rows_are_dealt(alone, [*feed_forward, *(name for name in alone[0] if "query" in name or "key" in name)])
    down = "trunk.blocks.1.ffn.down.weight"
    assert_rows_are_dealt([{down: part[down].T.contiguous()} for part in alone], [down])
    for part in alone[1:]:
        assert torch.equal(part["trunk.embedding.weight"], alone[0]["trunk.embedding.weight"]), "copied"
    scores = [sum(part[name].abs().sum() for name in feed_forward if "blocks.0" in name).item() for part in alone[1:]]
    assert scores[0] > scores[1] > scores[2], "the first has the best units"


@pytest.mark.timeout(200)
def test_parts_of_a_checkpoint_of_one_rank_are_the_same_read_on_two(tmp_path: Path) -> None:
    config = made_by(RESNET, parent=str(tmp_path / "step_00000001"))
    (parent,) = run_ranks(parent_rank, 1, config, str(tmp_path))
    alone, two = (run_ranks(parts_rank, world, config)[0] for world in (1, 2))
    assert all(torch.equal(here[name], there[name]) for here, there in zip(alone, two, strict=True) for name in here)
    norms = [name for name in parent if "norm" in name and name.endswith("running_mean")]
    assert len(norms) == 1 + 9 * 2 + 2
    assert_rows_are_dealt([parent, *alone[1:]], [*norms, "trunk.stem.conv.weight"])
    assert {len(part["trunk.stem.conv.weight"]) for part in alone[1:]} == {2, 3}
    assert all(torch.equal(part["heads.0.output.bias"], parent["heads.0.output.bias"]) for part in alone[1:])


@pytest.mark.timeout(300)
def test_a_run_of_text_killed_and_resumed_leaves_narrower_members(corpus: Corpus, tmp_path: Path) -> None:
    options = [
        *corpus.overrides, "method.name=ex_uno_plures", "method.members=2", "train.steps=8", "method.parent_share=0.25",
        "model.intermediate=45", "train.ema_decay=0.9",
    ]  # fmt: skip
    train(tmp_path / "undisturbed", options)
    train_with_a_kill(tmp_path / "killed", options, 14)
    run = tmp_path / "undisturbed"
    assert_same_ensembles(run, tmp_path / "killed")
    found = manifest(run)
    assert [each.name for each in found.members] == ["part_0", "part_1"]
    assert [each.name for each in found.others] == ["parent"]
    for number, each in enumerate(found.members):
        made = each.made
        assert (made["from"], made["part"], made["of"], made["steps"]) == ("part", number, 2, 8)
        assert made["parent_sha256"] == found.others[0].sha256
        assert (made["score"], made["dealing"]) == ("L1 norm of incoming weights", "interleaved")
        own = load_config(RunDir(run / each.path).config, []).model
        assert (own.hidden, own.intermediate, own.attention_heads, own.head_dim) == (16, 23 - number, 1, 16)
        weights = member(run, each.name)
        assert weights["model.trunk.blocks.0.ffn.down.weight"].shape == (16, 23 - number), "packed"
        assert weights["model.trunk.blocks.0.attention.query.weight"].shape == (16, 16)
    assert [each.step for each in found.members] == [10, 18], "each with all of train.steps"


@pytest.mark.timeout(300)
def test_a_run_of_pictures_killed_and_resumed_leaves_narrower_members(pictures: Path, tmp_path: Path) -> None:
    options = [
        f"data.path={pictures}", "method.name=ex_uno_plures", "method.members=2", "train.steps=6",
        f"model.classes={len(CLASSES)}", "model.channels=[5,5,6,7]", "sparsity.density=1", "train.micro_batch=2",
        "data.picture_size=16", "data.picture_shorter=16", "data.window=8", "eval.micro_batch=2",
    ]  # fmt: skip
    train(tmp_path / "undisturbed", options, config="configs/images_small.yaml")
    train_with_a_kill(tmp_path / "killed", options, 9, config="configs/images_small.yaml")
    run = tmp_path / "undisturbed"
    assert_same_ensembles(run, tmp_path / "killed")
    first, second = (member(run, each.name) for each in manifest(run).members)
    for weights, channels in ((first, [3, 3, 3, 4]), (second, [2, 2, 3, 3])):
        assert weights["model.trunk.blocks.3.conv3x3_first.weight"].shape == (channels[2], channels[1], 3, 3)
        assert weights["model.heads.0.output.weight"].shape == (len(CLASSES), channels[3])
    assert {each.made["parent"] for each in manifest(run).members} == {"initial values"}
