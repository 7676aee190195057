"""BatchEnsemble, MIMO and LoRA-Ensemble as whole runs on two ranks: what they leave, and the same after a kill."""

from __future__ import annotations

from pathlib import Path

import torch

from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus
from tests.data.rowsets import prepared
from tests.train.method_runs import assert_same_ensembles, manifest, member, train, train_with_a_kill


def _both(folder: Path, options: list[str], *, kill_after: int, config: str = "configs/tiny.yaml") -> Path:
    """One run undisturbed, one killed and resumed: identical. Returns the folder of the first."""
    train(folder / "undisturbed", options, config=config)
    train_with_a_kill(folder / "killed", options, kill_after, config=config)
    assert_same_ensembles(folder / "undisturbed", folder / "killed")
    return folder / "undisturbed"


def test_batch_ensemble_moves_shared_weights_and_factors_and_speaks_with_every_member(
    corpus: Corpus, tmp_path: Path
) -> None:
    options = [*corpus.overrides, "method.name=batch_ensemble", "method.members=3", "train.steps=10"]
    run = _both(tmp_path, [*options, "optim.warmup_steps=0"], kill_after=5)
    (alone,) = manifest(run).members
    assert (alone.path, alone.step) == (".", 10)
    tensors = member(run, "batch_ensemble")
    factors = tensors["model.trunk.blocks.0.ffn.up.rank_one_in"].view(3, 32)
    assert not (factors[0] == factors[1]).any()
    last = [row for row in read_lines(RunDir(run).metrics) if "validation/loss_ensemble" in row][-1]
    losses = [last[f"validation/loss_head_{number}"] for number in range(3)]
    assert len(set(losses)) == 3 and last["validation/disagreement"] > 0
    # Its topology is that of the shared weights.
    active = tensors["active.trunk.blocks.0.ffn.up.weight"].bool()
    assert not active.all() and not tensors["model.trunk.blocks.0.ffn.up.weight"][~active].any()


def test_mimo_is_the_same_on_one_and_two_ranks_and_after_a_kill(tmp_path: Path) -> None:
    config = tmp_path / "rows.yaml"
    config.write_text(
        "model: {family: mlp, features: 6, classes: 3, widths: [16, 16]}\n"
        f"data: {{path: {prepared(tmp_path)}, lanes: 4, workers: 0}}\n"
        "train: {micro_batch: 8}\n"
        "run: {device: cpu}\n"
    )
    options = [
        "method.name=mimo", "method.members=3", "train.steps=12", "train.global_batch=16", "train.batch_repeats=2",
        "train.same_inputs=0.25", "parallel.deterministic_reduce=true", "eval.sequences=0", "eval.micro_batch=20",
        "sparsity.drop=magnitude",
    ]  # fmt: skip
    run = _both(tmp_path, options, kill_after=7, config=str(config))
    train(tmp_path / "alone", options, ranks=1, config=str(config))
    assert_same_ensembles(run, tmp_path / "alone")
    assert member(run, "mimo")["model.trunk.blocks.0.linear.weight"].shape == (16, 3 * 6)
    last = [row for row in read_lines(RunDir(run).metrics) if "validation/loss_ensemble" in row][-1]
    assert len({last[f"validation/loss_head_{number}"] for number in range(3)}) == 3


def test_lora_members_leave_the_parent_as_it_was_and_are_saved_without_moments_of_it(
    corpus: Corpus, tmp_path: Path
) -> None:
    options = [
        *corpus.overrides, "method.name=lora_ensemble", "method.members=2", "method.parent_share=0.25",
        "method.tune_share=0.25", "model.rank=2", "train.steps=24", "optim.warmup_steps=0", "sparsity.density=1",
    ]  # fmt: skip
    run = _both(tmp_path, options, kill_after=9)
    assert [each.name for each in manifest(run).others] == ["parent"]
    parent, tuned = member(run, "parent"), member(run, "lora_ensemble")
    frozen = [name for name in parent if name.startswith("model.trunk.")]
    assert frozen and all(torch.equal(parent[name], tuned[name]) for name in frozen)
    moments = {name.removeprefix("first_moment.") for name in tuned if name.startswith("first_moment.")}
    own = {name.removeprefix("model.") for name in tuned if name.startswith("model.")}
    assert moments == own - {name.removeprefix("model.") for name in frozen}
    outputs = [tuned[f"model.heads.0.output.{number}.weight"] for number in range(2)]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(
        outputs[0], parent["model.heads.0.output.weight"]
    )
    assert tuned["model.trunk.blocks.0.attention.query.low_rank_out"].any()
    made = manifest(run).members[0].made
    assert made["parent_sha256"] == manifest(run).others[0].sha256
    # The parent is given this time; its members' first step has its loss.
    given = [*corpus.overrides, "method.name=lora_ensemble", "method.members=2", "sparsity.density=1"]
    given += [f"method.parent={run}/members/parent", "method.tune_share=0.25", "model.rank=2"]
    train(tmp_path / "given", given)
    again = member(tmp_path / "given", "lora_ensemble")
    assert all(torch.equal(again[name], parent[name]) for name in frozen)
