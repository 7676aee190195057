"""launch/select_neurons.py on a trained network: the problem is the layer's own, and a choice is better than chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.evaluation.evolution import active_weights
from nt_pretrain.evaluation.load import find, load
from nt_pretrain.evaluation.neurons import Wanted, choose, only, selectable
from nt_pretrain.evaluation.next_samples import next_samples
from nt_pretrain.evaluation.select import run
from nt_pretrain.evaluation.target import Target, config_of, target_of
from nt_pretrain.evaluation.write_member import manifest_hash, write_member
from nt_pretrain.methods.mutation import Child, Mutation
from nt_pretrain.models.llama import make_context
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.parallel.mutate import Mutable
from nt_pretrain.parallel.shard import local
from nt_pretrain.selection.solvers import Solver
from tests.conftest import Corpus
from tests.gloo import run_ranks
from tests.train import launches

LAYERS = ("trunk.blocks.0.ffn", "heads.1.blocks.1.ffn")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with blocks of which only the active ones exist, so that no matrix can simply be read."""
    folder = tmp_path_factory.mktemp("runs") / "blocks"
    options = ["train.steps=4", "optim.warmup_steps=2", "eval.every_steps=0", "optim.lr=1e-2"]
    options += ["sparsity.backend=block", "sparsity.balance=line", "sparsity.unit=16"]
    launches.finish(launches.start(1, folder, *corpus.overrides, *options), folder)
    return folder


def wanted(*layers: str, keep: float = 0.5) -> Wanted:
    others = (Solver("exact"), Solver("qaoa", layers=1, shots=16))
    return Wanted(layers, keep, Solver("exact"), others, group=6, rounds=1, compared=2, seed=0)


def chosen_rank(rank: int, world: int, words: str, out: str) -> dict[str, Any]:
    """What the command does, and what the layer itself says of the energies."""
    target = target_of(words)
    config = config_of(target, ["train.precision=fp32"], data=None, samples=8)
    ranks = connect(config)
    told: list[str] = []
    run(target, config, wanted(*LAYERS), ranks, told.append, samples=8, out=Path(out))
    found = find(target, config, ranks)
    model = load(found, config, ranks).model
    samples = next_samples(config, found.state, 8, ranks)
    mask = np.zeros(64, dtype=bool)
    mask[json.loads(Path(out).read_text())["layers"][LAYERS[0]]["kept"]] = True
    whole, part = [], []
    hook = model.get_submodule(LAYERS[0]).register_forward_hook(lambda module, inputs, output: part.append(output))
    for store, masks in ((whole, {}), (part, {LAYERS[0]: mask})):
        part.clear()
        for batch in samples.batches:
            with only(model, masks), torch.no_grad():
                model.trunk_output(batch.inputs, make_context(config.model, batch.documents))
        if store is whole:
            whole += part
    hook.remove()
    full, pruned = torch.cat(whole).double(), torch.cat(part).double()
    errors = {}
    for names in (("nowhere",), ()):
        with pytest.raises(ConfigErrors) as error:
            choose(model, config, wanted(*names), ranks, samples.batches, lambda: iter([]), lambda *words: None)
        errors[names] = str(error.value)
    _check_member_of_blocks(target, config, ranks, Path(out).with_name("member"))
    return {"told": told, "lost": float(((full - pruned) ** 2).sum() / (full**2).sum()), "errors": errors,
            "there": sorted(selectable(model)), "seen": samples.seen}  # fmt: skip


def _check_member_of_blocks(target: Target, config: Config, ranks: Ranks, folder: Path) -> None:
    """A mutated model, written and read again, is what it was: weights and where its blocks are."""
    found = find(target, config, ranks)
    loaded = load(found, config, ranks)
    mutable = Mutable(loaded.model, active_weights(loaded), Mutation(0, 0.3, 0.1), ranks)
    before = {name: x.detach().clone() for name, x in loaded.model.named_parameters()}
    with mutable.child(Child(0, 5)):
        sha256 = write_member(folder, loaded, target, found, ranks)
        member = target_of(str(folder))
        again = find(member, config, ranks)
        assert manifest_hash(again.path) == sha256
        read = load(again, config, ranks)
        assert read.digest == loaded.digest
        for (name, here), there in zip(loaded.model.named_parameters(), read.model.parameters(), strict=True):
            assert local(here).equal(local(there)), name
            moved = int((local(here) != local(before[name])).sum())
            assert moved == (round(0.1 * here.numel()) if here.ndim >= 2 else 0), name


def test_neurons_of_a_trained_network(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.json"
    (found,) = run_ranks(chosen_rank, 1, str(trained), str(out), timeout=200)
    record = json.loads(out.read_text())
    assert list(record["layers"]) == list(LAYERS)
    for layer in record["layers"].values():
        assert abs(len(layer["kept"]) - 32) <= 6 and layer["neurons"] == 64
        assert 0.0 < layer["lost"] < layer["lost_at_random"]
        assert layer["lost"] <= layer["lost_by_size"] + 1e-9
    # The energy is the squared error of the layer that runs, measured here once more.
    assert record["layers"][LAYERS[0]]["lost"] == pytest.approx(found["lost"], rel=1e-4)
    who = [each["who"] for each in record["held_out"]]
    assert who == ["all neurons", "chosen (exact)", "as many of the largest", "as many at random"]
    assert len({each["nll"] for each in record["held_out"]}) == 4
    assert "never trained on" in found["told"][0] and not found["seen"]
    assert "heads.2.output" in found["there"] and "trunk.blocks.0.ffn" in found["there"]
    assert all("there are: " in words and "heads.1.blocks.1.ffn" in words for words in found["errors"].values())
