"""What a command line may name, the configuration that follows, and the words for what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config, to_yaml
from nt_pretrain.evaluation.target import config_of, target_of

ROOT = Path(__file__).resolve().parents[2]
MESH = ["parallel.shard=1", "parallel.replicate=2", "parallel.head=3"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    (folder / "checkpoints" / "step_00000040").mkdir(parents=True)
    config = load_config(ROOT / "configs" / "tiny.yaml", [*MESH, "parallel.compile=true"])
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def test_a_run_a_checkpoint_and_a_manifest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = run / "checkpoints" / "step_00000040"
    assert (target_of(str(run)).rundir.path, target_of(str(run)).checkpoint) == (run, None)
    for words in (str(checkpoint), f"{checkpoint}/", f"{checkpoint}/manifest.json"):
        found = target_of(words)
        assert (found.rundir.path, found.checkpoint) == (run, checkpoint)
    for folder, words in (
        (run, "checkpoints/step_00000040"),
        (run / "checkpoints", "step_00000040"),
        (checkpoint, "manifest.json"),
        (checkpoint, "."),
    ):
        monkeypatch.chdir(folder)
        found = target_of(words)
        assert found.rundir.path.resolve() == run and found.checkpoint is not None, (folder, words)
        assert found.checkpoint.resolve() == checkpoint


def test_what_is_not_there_and_what_is(run: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"other: there is no such folder; there are: .*runs/one"):
        target_of(str(run.parent / "other"))
    with pytest.raises(ConfigErrors, match=r"checkpoints: is not a run directory: it has no config.yaml"):
        target_of(str(run / "checkpoints"))
    with pytest.raises(ConfigErrors, match=r"no such checkpoint; there are: .*step_00000040"):
        target_of(str(run / "checkpoints" / "step_00000060"))
    (run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"its run's config.yaml must lie at .*runs/one/config.yaml"):
        target_of(str(run / "checkpoints" / "step_00000040"))


def test_the_configuration_is_the_runs_on_a_mesh_for_any_ranks(run: Path) -> None:
    config = config_of(target_of(str(run)), ["eval.micro_batch=64"], data=None, samples=0)
    parallel = config.parallel
    assert (parallel.replicate, parallel.shard, parallel.head, parallel.tensor) == (1, 0, 1, 1)
    assert not parallel.compile
    assert (config.eval.sequences, config.eval.micro_batch) == (0, 64)
    assert (config.model.heads, config.data.path) == (3, "data/tiny")
    config = config_of(target_of(str(run)), ["data.sources={a: x, b: y}"], data="data/other", samples=7)
    assert (config.data.path, config.data.sources, config.eval.sequences) == ("data/other", {}, 7)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.head=3", "shards over the ranks it is started on"),
        ("eval.sequences=16", "give --samples N"),
        ("eval.micro=3", "unknown key"),
        ("model.attention_heads=3", "not divisible"),
    ],
)
def test_options_that_make_no_sense_here(run: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigErrors, match=words):
        config_of(target_of(str(run)), [override], data=None, samples=0)
