"""A checkpoint of another run is recognised by name, before any of it is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import newest_valid
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.resume import refuse_other_model, resume
from nt_pretrain.train.state import fresh_state, identity
from tests.gloo import run_ranks

MODEL = dict(vocab_size=64, hidden=32, intermediate=48, layers=2, attention_heads=4, heads=2, blocks_in_head=1)
RUN: dict[str, dict[str, Any]] = {"model": MODEL, "sparsity": {"density": 0.5}, "train": {}}


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate(sections | {name: fields | sections.get(name, {}) for name, fields in RUN.items()})


def refusals(rank: int, world: int, folder: Path, others: dict[str, tuple[Config, str]]) -> dict[str, str]:
    """What each of ``others``, a configuration and the hash of a tokenizer, is told about a checkpoint of RUN."""
    mine = config()
    ranks = connect(mine)
    state = fresh_state(mine, ranks)
    saved = state.facts(ranks) | {"position": {}}
    save(folder, 1, state.checkpoint_tensors(), saved, identity=identity(mine, "mine"), group=ranks.saving)
    found = newest_valid(folder, group=ranks.control)
    assert found is not None
    told = {}
    older = dataclasses.replace(found, identity={"model": found.identity["model"]})
    before_sgd = {key: value for key, value in found.identity.items() if key != "optimizer"}
    unsaid = dataclasses.replace(found, identity=before_sgd)
    bare = dataclasses.replace(found, state={})
    refuse_other_model(unsaid, identity(mine, "mine"))  # of a version that knew AdamW only: it is the same
    with pytest.raises(CheckpointError) as refused:
        refuse_other_model(unsaid, identity(config(optim={"algorithm": "sgd"}), "mine"))
    told["before sgd"] = str(refused.value)
    for name, other in (("identity", older), ("state", bare)):
        with pytest.raises(CheckpointError) as refused:
            resume(fresh_state(mine, ranks), other, mine, identity(mine, "mine"), ranks)
        told[name] = str(refused.value)
    for name, (other, tokenizer) in others.items():
        with pytest.raises(CheckpointError) as refused:
            resume(fresh_state(other, ranks), found, other, identity(other, tokenizer), ranks)
        told[name] = str(refused.value)
    return told


OTHERS: dict[str, tuple[dict[str, dict[str, Any]], str, str]] = {
    "model": ({"model": {"hidden": 64}}, "mine", "model.hidden: checkpoint 32, this run 64"),
    "heads": ({"model": {"heads": 3}}, "mine", "model.heads: checkpoint 2, this run 3"),
    "density": ({"sparsity": {"density": 0.25}}, "mine", "sparsity.density: checkpoint 0.5, this run 0.25"),
    "dense": ({"sparsity": {"density": 1.0}}, "mine", "sparsity.density: checkpoint 0.5, this run 1.0"),
    "unit": (
        {"sparsity": {"unit": 16, "scope": "no_vocab"}},
        "mine",
        "sparsity.unit: checkpoint 1, this run 16\n  sparsity.scope: checkpoint 'all', this run 'no_vocab'",
    ),
    "distribution": (
        {"sparsity": {"distribution": "uniform"}},
        "mine",
        "sparsity.distribution: checkpoint 'erk', this run 'uniform'",
    ),
    "algorithm": ({"optim": {"algorithm": "sgd"}}, "mine", "optimizer.algorithm: checkpoint 'adamw', this run 'sgd'"),
    "tokenizer": ({}, "another", "tokenizer: checkpoint mine, this run another"),
    "weights": ({"train": {"precision": "pure_bf16"}}, "mine", "weights: checkpoint fp32, this run bf16"),
    "wide weights": ({"train": {"precision": "fp64"}}, "mine", "weights: checkpoint fp32, this run fp64"),
}


def test_another_run_is_named(tmp_path: Path) -> None:
    others = {name: (config(**sections), tokenizer) for name, (sections, tokenizer, _) in OTHERS.items()}
    (told,) = run_ranks(refusals, 1, tmp_path, others, timeout=120)
    for name, (_, _, expected) in OTHERS.items():
        assert "belongs to another model:\n" in told[name]
        assert f"  {expected}\n" in told[name], name
        assert told[name].endswith("Set these back, or start a new run with another run.name.")
    another = "was written by another version of this program: "
    needs = "['model', 'optimizer', 'sparsity', 'tokenizer', 'weights']"
    assert f"{another}it says of itself ['model'], this version needs {needs}" in told["identity"]
    assert "  optimizer.algorithm: checkpoint 'adamw', this run 'sgd'\n" in told["before sgd"]
    assert f"{another}its state lacks 'step'" in told["state"]
