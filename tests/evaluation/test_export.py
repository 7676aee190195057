"""launch/export.py: one head of a run saved by two ranks computes, as timm's network, what it computes in the run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nt_pretrain.evaluation.assemble import gathered
from nt_pretrain.evaluation.load import find, load
from nt_pretrain.evaluation.target import config_of, target_of
from nt_pretrain.methods.manifest import Ensemble, write_ensemble
from nt_pretrain.models.timm_layout import from_timm
from nt_pretrain.models.vision import VisionModel, build_vision
from nt_pretrain.parallel.mesh import connect
from tests import warm
from tests.evaluation.test_pictures import prepared
from tests.gloo import run_ranks
from tests.train import launches

ROOT = Path(__file__).resolve().parents[2]
HEADS, CLASSES = 2, 3

pytestmark = pytest.mark.timeout(300)


def export(*arguments: str, cold: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(ROOT / "launch" / "export.py"), *arguments]
    return warm.run(words, cwd=ROOT, env=environment, timeout=200, cold=cold)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    config = folder / "resnet18.yaml"
    config.write_text(
        f"model: {{family: resnet18, classes: {CLASSES}, heads: {HEADS}, blocks_in_head: 3}}\n"
        "sparsity: {density: 0.5, update_every: 1}\n"
        "train: {steps: 1, global_batch: 8, micro_batch: 4, ema_decay: 0.5}\n"
        "optim: {algorithm: sgd, lr: 0.05}\n"
        f"data: {{path: {prepared(folder, CLASSES, 0)}, picture_size: 32, picture_shorter: 32, lanes: 8, window: 4, "
        "workers: 0}\n"
        "eval: {every_steps: 0, sequences: 8, micro_batch: 8}\n"
        "run: {device: cpu}\n"
    )
    run = folder / "runs" / "pictures"
    launches.finish(launches.start(2, run, config=str(config)), run)
    return run


def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits_rank(rank: int, world: int, words: str, average: bool) -> list[Tensor]:
    """Of every head of the run."""
    target = target_of(words)
    config = config_of(target, ["run.threads_per_rank=1"], data=None, samples=0)
    ranks = connect(config)
    model = load(find(target, config, ranks), config, ranks, average=average).model.eval()
    with torch.no_grad():
        hidden = model.trunk(pixels(), None)
        return [head(hidden, None) for head in model.heads.values()]


@pytest.mark.parametrize("average", [False, True], ids=["weights", "averages"])
def test_what_is_written_computes_what_the_head_computes(trained: Path, tmp_path: Path, average: bool) -> None:
    (expected,) = run_ranks(logits_rank, 1, str(trained), average, timeout=150)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    out = tmp_path / "new" / "head_1.pt"
    options = ["--average"] if average else []
    done = export(str(trained), "--head", "1", "--out", str(out), *options, cold=not average)
    assert done.returncode == 0, done.stderr
    assert f"head 1 of pictures, step 1{', average of the weights' if average else ''}: {out}" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == ["head_1.pt"]
    state = torch.load(out, weights_only=True)
    assert sum(tensor.numel() for tensor in state.values()) * 4 <= out.stat().st_size < 50_000_000
    model = VisionModel("resnet18", CLASSES)  # one head; all blocks but the classifier in the trunk
    network = build_vision(model)
    network.load_state_dict(from_timm(state, model))
    with torch.no_grad():
        found = network.eval().heads["0"](network.trunk_output(pixels(), None), None)
    torch.testing.assert_close(found, expected[1], rtol=0, atol=1e-5)


def test_the_head_of_a_member(trained: Path, tmp_path: Path) -> None:
    chosen = gathered([str(trained)], tmp_path, lambda line: None)
    members = [replace(chosen.speakers[0].listed, name=name) for name in ("one", "two")]  # type: ignore[type-var]
    manifest = str(write_ensemble(tmp_path, Ensemble({"name": "together"}, "probability", members)))  # type: ignore[arg-type]
    alone = export(str(trained), "--head", "1", "--out", str(tmp_path / "alone.pt"))
    member = export(manifest, "--member", "two", "--head", "1", "--out", str(tmp_path / "member.pt"))
    counted = export(manifest, "--head", "3", "--out", str(tmp_path / "counted.pt"))
    for each in (alone, member, counted):
        assert each.returncode == 0, each.stderr
    assert f"head 1 of two, {manifest}, step 1" in counted.stdout
    states = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("alone", "member", "counted")]
    for state in states[1:]:
        assert all(state[name].equal(tensor) for name, tensor in states[0].items())
    unnamed = export(manifest, "--member", "two", "--out", str(tmp_path / "x.pt"))
    assert unnamed.returncode == 2 and "one of 0 two.head_0, 1 two.head_1 must be named" in unnamed.stderr
    nobody = export(manifest, "--member", "three", "--out", str(tmp_path / "x.pt"))
    assert nobody.returncode == 2 and "--member three: there is none; members are one, two" in nobody.stderr


def test_what_cannot_be_written_is_told(trained: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "head.pt")
    none = export(str(trained), "--head", "2", "--out", out)
    assert none.returncode == 2 and "--head 2: there is none; the run has heads 0 to 1" in none.stderr
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.yaml").write_text((ROOT / "configs" / "tiny.yaml").read_text())
    text = export(str(tmp_path / "llama"), "--head", "0", "--out", out)
    assert text.returncode == 2, text.stderr
    assert "model.family llama has no layout in timm; resnet18, resnet34 and resnet50 have" in text.stderr
    folder = export(str(trained), "--head", "0", "--out", str(tmp_path))
    assert folder.returncode == 4 and f"cannot write {tmp_path}" in folder.stderr
    assert not any("Traceback" in each.stderr for each in (none, text, folder)) and not Path(out).exists()
