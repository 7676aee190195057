"""Members of ensembles for tests: run directories with one checkpoint without moments, of weights nobody trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.load import load_config, to_yaml
from nt_pretrain.config.schema import Config
from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.evaluation.chosen import checkpoint_hash
from nt_pretrain.methods.manifest import Ensemble, Member, write_ensemble
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.train.state import TrainState, fresh_state, identity

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("model", "active", "columns", "ids")
STEP = 3
CHECKPOINT = f"checkpoints/step_{STEP:08d}"


def write_members(rank: int, world: int, folders: dict[str, list[str]], config: str) -> None:
    """A member in each folder, of the configuration file ``config`` with the options named."""
    ranks: Ranks | None = None
    for folder, options in folders.items():
        loaded = load_config(ROOT / config, ["run.device=cpu", "run.threads_per_rank=1", *options])
        ranks = ranks or connect(loaded)
        write_member(Path(folder), loaded, ranks)


def write_member(folder: Path, config: Config, ranks: Ranks) -> None:
    write_state(folder, fresh_state(config, ranks), config, ranks)


def write_state(folder: Path, state: TrainState, config: Config, ranks: Ranks) -> None:
    keys = ("step", "tokens", "averaged", "active_units", "topology_digest")
    state.step = STEP
    facts = state.facts(ranks)
    tensors = {name: tensor for name, tensor in state.checkpoint_tensors().items() if name.split(".")[0] in KINDS}
    tokenizer = "" if config.model.classifies else load_tokenizer(config.data.tokenizer).sha256
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    save(
        folder / "checkpoints", STEP, tensors, {key: facts[key] for key in keys}, identity=identity(config, tokenizer),
        group=ranks.saving,
    )  # fmt: skip


def ensemble_of(folder: Path, paths: dict[str, str], **more: Any) -> Path:
    """An ``ensemble.json`` in ``folder`` of members by name, at paths relative to it."""
    members = [
        Member(
            name, path, STEP, checkpoint_hash(folder / path / "checkpoints" / f"step_{STEP:08d}"), **more.get(name, {})
        )
        for name, path in paths.items()
    ]
    return write_ensemble(folder, Ensemble({"name": "test"}, "probability", members))
