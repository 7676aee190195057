"""launch/evolve.py: the same children on any number of ranks, of exact density, judged on training samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from nt_pretrain.data.validation import validation_batches
from nt_pretrain.evaluation.evolution import active_weights, run
from nt_pretrain.evaluation.evolve import Wanted
from nt_pretrain.evaluation.finished_children import LOSSES
from nt_pretrain.evaluation.load import find, load
from nt_pretrain.evaluation.next_samples import next_samples
from nt_pretrain.evaluation.target import config_of, target_of
from nt_pretrain.methods.manifest import read_ensemble
from nt_pretrain.methods.mutation import Child, Mutation
from nt_pretrain.models.llama import make_context
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.mutate import Mutable
from nt_pretrain.parallel.shard import local
from tests import warm
from tests.conftest import Corpus
from tests.gloo import run_ranks
from tests.train import launches

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
OVERRIDES = ["run.threads_per_rank=1"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose matrices are half zeros."""
    folder = tmp_path_factory.mktemp("runs") / "parent"
    options = [f"train.steps={STEPS}", "optim.warmup_steps=2", "eval.every_steps=0", "optim.lr=1e-2"]
    launches.finish(launches.start(2, folder, *corpus.overrides, *options), folder)
    return folder


def wanted(**changes: Any) -> Wanted:
    mutation = {"key": 3, "sigma": 0.3, "density": 0.1, "scheme": "dynamic"}
    numbers = {"children": 4, "top": 2, "generations": 2, "samples": 10}
    mutation |= {name: value for name, value in changes.items() if name in mutation}
    numbers |= {name: value for name, value in changes.items() if name in numbers}
    return Wanted(Mutation(**mutation), **numbers)  # type: ignore[arg-type]


def evolve_rank(rank: int, world: int, words: str, out: str, asked: Wanted) -> list[str]:
    """What the command does on ranks that torchrun started; the lines for people."""
    target = target_of(words)
    config = config_of(target, OVERRIDES, data=None, samples=8)
    told: list[str] = []
    run(target, config, asked, connect(config), told.append, out=Path(out))
    return told


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the only checkpoint of a run directory."""
    (checkpoint,) = RunDir(folder).checkpoints.iterdir()
    whole = folder.parent / f"{folder.name}.pt"
    dcp_to_torch_save(checkpoint, whole)
    return torch.load(whole, weights_only=True)  # type: ignore[no-any-return]


def losses_of(out: Path) -> dict[tuple[int, int], float]:
    lines = [json.loads(line) for line in (out / LOSSES).read_text().splitlines()]
    return {(line["generation"], line["child"]): line["nll"] for line in lines}


@pytest.fixture(scope="module")
def evolved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations, evolved on one rank; what is told is in told.txt."""
    out = tmp_path_factory.mktemp("evolved") / "one"
    (told,) = run_ranks(evolve_rank, 1, str(trained), str(out), wanted(), timeout=200)
    (out / "told.txt").write_text("\n".join(told))
    return out


def test_two_ranks_make_the_same_children_and_members(trained: Path, evolved: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    told = run_ranks(evolve_rank, 2, str(trained), str(two), wanted(), timeout=200)
    assert told[1] == []
    assert (two / LOSSES).read_bytes() == (evolved / LOSSES).read_bytes()
    assert len(losses_of(two)) == len(set(losses_of(two).values())) == 2 * (4 + 1)
    # All lines but that of the folder.
    assert told[0][:-1] == (evolved / "told.txt").read_text().splitlines()[:-1]
    here, there = read_ensemble(evolved / "ensemble.json"), read_ensemble(two / "ensemble.json")
    assert [each.name for each in here.members] == [each.name for each in there.members]
    for member in here.members:
        first, second = tensors_of(evolved / member.path), tensors_of(two / member.path)
        assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_the_best_are_kept_and_can_be_made_again_from_their_numbers(trained: Path, evolved: Path) -> None:
    ensemble, losses = read_ensemble(evolved / "ensemble.json"), losses_of(evolved)
    of_generation = [sorted(range(4), key=lambda child: losses[g, child])[:2] for g in range(2)]
    assert [each.made["number"] for each in ensemble.members] == of_generation[1]
    assert all(each.made["means_of"] == of_generation[:1] for each in ensemble.members)
    assert (
        ensemble.others[0].name == "parent" and ensemble.others[0].sha256 == ensemble.members[0].made["parent_sha256"]
    )
    assert (evolved / ensemble.others[0].path / "config.yaml").samefile(trained / "config.yaml")
    made = [each.made for each in ensemble.members]
    run_ranks(remade_rank, 2, str(trained), str(evolved), made, timeout=200)


def remade_rank(rank: int, world: int, words: str, out: str, made: list[dict[str, Any]]) -> None:
    """Children by their numbers, on two ranks, beside the members of one rank; afterwards the parent is back."""
    target = target_of(words)
    config = config_of(target, OVERRIDES, data=None, samples=8)
    ranks = connect(config)
    loaded = load(find(target, config, ranks), config, ranks)
    first = made[0]
    mutation = Mutation(first["key"], first["sigma"], first["density"], first["scheme"])
    mutable = Mutable(loaded.model, active_weights(loaded), mutation, ranks)
    for generation, best in enumerate(first["means_of"]):
        mutable.become_mean([Child(generation, number) for number in best])
    parent = {name: local(x).detach().clone() for name, x in loaded.model.named_parameters()}
    for each in made:
        child = target_of(f"{out}/members/child_{each['generation']}_{each['number']}")
        member = load(find(child, config, ranks), config, ranks).model
        with mutable.child(Child(each["generation"], each["number"])):
            for (name, here), there in zip(loaded.model.named_parameters(), member.parameters(), strict=True):
                assert local(here).equal(local(there)), name
            assert any(not local(x).equal(parent[name]) for name, x in loaded.model.named_parameters())
        assert all(local(x).equal(parent[name]) for name, x in loaded.model.named_parameters())


def test_a_child_moves_exactly_its_share_of_the_active_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_ranks(evolve_rank, 1, str(trained), str(out), wanted(generations=1, children=1, top=1), timeout=200)
    member, parent = tensors_of(out / "members" / "child_0_0"), launches.final_tensors(trained, STEPS)
    matrices = [name for name in member if name.startswith("model.") and member[name].ndim >= 2]
    assert len(matrices) > 20 and any(f"active.{name[6:]}" in member for name in matrices)
    for name in matrices:
        active = parent.get(f"active.{name[6:]}", torch.ones_like(parent[name])).view_as(parent[name]).bool()
        moved = member[name] != parent[name]
        assert int(moved.sum()) == round(0.1 * int(active.sum())), name
        assert not (moved & ~active).any(), name
    assert all(member[name].equal(parent[name]) for name in member if name not in matrices)


def test_parts_of_a_static_scheme_are_disjoint_and_leave_nothing_out(trained: Path) -> None:
    run_ranks(static_rank, 2, str(trained), timeout=200)


def static_rank(rank: int, world: int, words: str) -> None:
    target = target_of(words)
    config = config_of(target, OVERRIDES, data=None, samples=8)
    ranks = connect(config)
    loaded = load(find(target, config, ranks), config, ranks)
    mutable = Mutable(loaded.model, active_weights(loaded), Mutation(3, 0.3, 0.25, "static"), ranks)
    times = {matrix.name: torch.zeros(matrix.weight.numel(), dtype=torch.int64) for matrix in mutable.matrices}
    for number in range(4):
        for matrix, positions in mutable.chosen(Child(0, number)):
            times[matrix.name][positions] += 1
    for matrix in mutable.matrices:
        assert times[matrix.name].equal(matrix.candidates.long()), matrix.name


def test_without_noise_every_child_has_the_parents_loss_to_the_bit(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = wanted(sigma=0.0, children=2, top=2, generations=2)
    (told,) = run_ranks(evolve_rank, 1, str(trained), str(out), asked, timeout=200)
    assert len(losses_of(out)) == 6 and len(set(losses_of(out).values())) == 1
    # And so have the mean of them, the members and their ensemble, on the validation split.
    last = [line.split()[-1] for line in told if line.startswith("  ")]
    assert len(last) == 5 and len(set(last)) == 1


def test_children_are_judged_on_training_samples_that_come_next(trained: Path, evolved: Path) -> None:
    (loss,) = run_ranks(judged_rank, 1, str(trained), timeout=200)
    assert losses_of(evolved)[0, -1] == pytest.approx(loss, rel=1e-6)
    assert "10 training samples that the run would read next, never trained on" in (evolved / "told.txt").read_text()


def judged_rank(rank: int, world: int, words: str) -> float:
    """The parent's loss on these samples, computed here once more; none of them is of the validation split."""
    target = target_of(words)
    config = config_of(target, OVERRIDES, data=None, samples=0)
    ranks = connect(config)
    found = find(target, config, ranks)
    model = load(found, config, ranks).model
    samples = next_samples(config, found.state, 10, ranks)
    validation = {tuple(row.tolist()) for tokens, _ in validation_batches(config, rank=0, world=1) for row in tokens}
    total, count = 0.0, 0
    for inputs, targets, documents in samples.batches:
        assert documents is not None
        for row, labels in zip(inputs, targets, strict=True):
            assert not (labels >= 0).any() or all(tuple(row.tolist()) != known[:-1] for known in validation)
        context = make_context(config.model, documents)
        with torch.no_grad():
            hidden = model.trunk_output(inputs, context)
            p = torch.stack([F.softmax(head(hidden, context).double(), -1) for head in model.heads.values()]).mean(0)
        kept = targets >= 0
        total -= float(p.gather(-1, targets.clamp_min(0)[..., None])[..., 0][kept].log().sum())
        count += int(kept.sum())
    return total / count


def launch(*arguments: str, cold: bool = False) -> subprocess.Popen[str] | warm.Started:
    words = [str(ROOT / "launch" / "evolve.py"), *arguments, *OVERRIDES]
    environment, pipe = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    if cold:
        return subprocess.Popen([sys.executable, *words], env=environment, stdout=pipe, stderr=pipe, text=True)
    return warm.start(words, cwd=ROOT, env=environment)


def test_a_killed_evolution_goes_on_and_ends_with_the_same_table(trained: Path, evolved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--children", "4", "--top", "2", "--generations", "2", "--samples", "10", "--key", "3"]
    options += ["--validation", "8", "--out", str(out)]
    first = launch(str(trained), *options)
    deadline = time.monotonic() + 120
    while not (out / LOSSES).is_file() or len((out / LOSSES).read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and first.poll() is None, first.stderr.read() if first.stderr else ""
        time.sleep(0.01)
    first.kill()
    first.communicate()
    # On a slow machine the kill may come late; it might have come here, in the middle of a line.
    known = "".join((out / LOSSES).read_text().splitlines(keepends=True)[:3])
    (out / LOSSES).write_text(known + '{"generation": 0, "chi')
    second = launch(str(trained), *options, cold=True)
    told, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert "2 children are known from before" in told and (out / LOSSES).read_text().startswith(known)
    assert (out / LOSSES).read_bytes() == (evolved / LOSSES).read_bytes()
    assert told.splitlines()[-1].startswith(f"next: python launch/evaluate.py {out}/ensemble.json")
    other = launch(str(trained), *options, "--sigma", "0.2")
    _, errors = other.communicate(timeout=100)
    assert other.returncode == 2 and "sigma 0.3, now 0.2" in errors and "Traceback" not in errors


def test_mistakes_are_told_in_words(trained: Path) -> None:
    process = launch(str(trained), "--top", "50", "--density", "0.3", "--scheme", "static", "--samples", "0")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2 and "Traceback" not in errors
    assert "--top 50" in errors and "1/3" in errors and "--samples 0" in errors
