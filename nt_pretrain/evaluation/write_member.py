"""A loaded model, as it is now, as a run directory of its own: what every command takes that takes a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.checkpoint.load import Found
from nt_pretrain.checkpoint.manifest import MANIFEST, file_entry
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.load import load_config, to_yaml
from nt_pretrain.config.method_section import MethodSection
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.target import Target
from nt_pretrain.methods.phase import changed
from nt_pretrain.observe.rundir import RunDir, write_atomic
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.blocks import topologies
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import like_lines, like_parameter, own_ids
from nt_pretrain.parallel.single import single_topologies


def write_member(folder: Path, loaded: Loaded, target: Target, found: Found, ranks: Ranks) -> str:
    """Write config.yaml and one checkpoint without moments into ``folder``, replacing what is there. Collective.

    Args:
        loaded: of ``found``, a checkpoint of ``target``; its weights may have been changed since, not its topology.

    Returns:
        The sha256 of the checkpoint's manifest, by which a member is known.

    Raises:
        CheckpointError: on all ranks, when it cannot be written.
    """
    doing = f"cannot write {folder}"

    def prepare() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        own = changed(load_config(target.rundir.config, []), {"run.dir": str(folder.parent), "run.name": folder.name})
        write_atomic(folder / "config.yaml", to_yaml(own.model_copy(update={"method": MethodSection()})))
        return True

    on_first(ranks.control, doing, prepare)
    facts = found.state | {"averaged": False}
    path = save(
        RunDir(folder).checkpoints, found.step, _tensors(loaded), facts, identity=found.identity, group=ranks.saving
    )
    return on_first(ranks.control, doing, lambda: manifest_hash(path))


def manifest_hash(checkpoint: Path) -> str:
    """sha256 of a checkpoint's manifest."""
    return file_entry(checkpoint / MANIFEST).sha256


def _tensors(loaded: Loaded) -> dict[str, Tensor]:
    """Weights, running statistics and topology, by their names in a checkpoint."""
    model = loaded.model
    parameters: dict[str, Any] = dict(model.named_parameters())
    blocks, singles = topologies(model), single_topologies(model)
    tensors = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"model.{name}": buffer for name, buffer in statistics_of(model).items()}
    for layer in loaded.layers:
        if layer.name not in blocks and layer.name not in singles:
            flags = layer.active.view(torch.uint8)
            placed = flags if layer.is_replicated else like_parameter(flags, parameters[layer.name])
            tensors[f"active.{layer.name}"] = placed
    tensors |= {f"columns.{name}": like_lines(block.columns, parameters[name]) for name, block in blocks.items()}
    return tensors | {f"ids.{name}": own_ids(single, parameters[name]) for name, single in singles.items()}
