"""BatchEnsemble, MIMO and LoRA-Ensemble as whole runs on two ranks: what they leave, and the same after a kill."""

from __future__ import annotations

from pathlib import Path

from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus
from tests.train.method_runs import assert_same_ensembles, manifest, member, train, train_with_a_kill


def _both(folder: Path, options: list[str], *, kill_after: int) -> Path:
    """One run undisturbed, one killed and resumed: identical. Returns the folder of the first."""
    train(folder / "undisturbed", options)
    train_with_a_kill(folder / "killed", options, kill_after)
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
