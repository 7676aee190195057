"""Finds the newest checkpoint that is whole and reads it, on any number of ranks."""

from __future__ import annotations

import difflib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nt_pretrain.checkpoint.errors import CheckpointError, on_first, together
from nt_pretrain.checkpoint.folders import candidates, unfinished
from nt_pretrain.checkpoint.manifest import (
    STATE,
    Manifest,
    content_problems,
    listing_problems,
    read_manifest,
    shares,
)
from nt_pretrain.checkpoint.metadata import CheckedReader, read_metadata

SHOWN = 8
"""Tensors named in one message; the rest is counted."""


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are what was written.

    Attributes:
        state: the JSON that was saved beside the tensors.
        identity: what must agree with this run.
        world_size: number of ranks that saved it.
        skipped: newer ones that cannot be used, each with the reason, as lines for people.
    """

    path: Path
    step: int
    state: dict[str, Any]
    identity: dict[str, Any]
    world_size: int
    skipped: list[str]


def newest_valid(root: Path, *, group: dist.ProcessGroup | None) -> Found | None:
    """The newest checkpoint of ``root`` whose manifest and hashes are right; the same on all ranks. Collective.

    Changes nothing on the disk, so it may be used on the folder of a run that is going on.

    Returns:
        None when no checkpoint was ever finished here.

    Raises:
        CheckpointError: there are checkpoints and all are broken; going on from step 0 must be somebody's decision.
    """
    paths, open_saves = on_first(group, f"cannot read {root}", lambda: (candidates(root), unfinished(root)))
    ignored = [f"{save} is of a save that has not finished" for save in open_saves]
    skipped: list[str] = []
    for path in paths:
        try:
            return _open(path, [*skipped, *ignored], group)
        except CheckpointError as error:
            skipped.append(str(error))
    if skipped:
        listed = "\n".join(f"  {line}" for line in skipped)
        raise CheckpointError(
            f"none of the checkpoints in {root} can be used:\n{listed}\nTo start from step 0 move them away first."
        )
    return None


def open_checkpoint(path: Path, *, group: dist.ProcessGroup | None) -> Found:
    """One checkpoint by its folder, with all hashes checked. Collective.

    Raises:
        CheckpointError: on all ranks, with everything that is wrong.
    """
    return _open(path, [], group)


def load_tensors(path: Path, tensors: dict[str, Tensor], *, group: dist.ProcessGroup | None = None) -> None:
    """Read tensors in place, whatever number of ranks has saved them. Collective.

    The files must have been verified by :func:`newest_valid` or :func:`open_checkpoint`: hashes are not checked again.

    Args:
        tensors: DTensors (each rank reads what overlaps its shard) and plain tensors (read whole on every rank).
            Tensors of the checkpoint that are not asked for are left alone.
        group: all ranks; None is the default group.

    Raises:
        CheckpointError: on all ranks; before anything is read, when a name is not in the checkpoint or a shape or dtype
            differs. When reading fails the tensors hold partly old, partly new values.
    """
    doing = f"cannot load {path}"

    readers: list[CheckedReader] = []

    def check() -> None:
        metadata = read_metadata(path, read_manifest(path).files)
        if differences := _differences(tensors, metadata):
            lines = "".join(f"\n  {line}" for line in differences[:SHOWN])
            more = f"\n  ... and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise CheckpointError(
                f"it does not fit this model:{lines}{more}\n"
                "Use the configuration it was saved with (config.yaml in its run's folder), or start a new run"
            )
        readers.append(CheckedReader(path, metadata))

    together(group, doing, check)
    together(group, doing, lambda: _read(tensors, readers[0]))


def _open(path: Path, skipped: list[str], group: dist.ProcessGroup | None) -> Found:
    doing = f"{path} cannot be used"
    manifest = on_first(group, doing, lambda: _listed(path))
    mine = shares(manifest, dist.get_world_size(group))[dist.get_rank(group)]
    together(group, doing, lambda: _complain(content_problems(path, manifest, mine)))
    state = on_first(group, doing, lambda: _read_state(path, manifest))
    return Found(path, manifest.step, state, manifest.identity, manifest.world_size, skipped)


def _listed(path: Path) -> Manifest:
    manifest = read_manifest(path)
    _complain(listing_problems(path, manifest))
    return manifest


def _complain(problems: list[str]) -> None:
    if problems:
        raise CheckpointError("; ".join(problems))


def _read_state(path: Path, manifest: Manifest) -> dict[str, Any]:
    """After the hashes are right: the table of contents must be usable too, or a later step would stop at it."""
    read_metadata(path, manifest.files)
    state = json.loads((path / STATE).read_bytes())
    if not isinstance(state, dict):
        raise CheckpointError(f"{STATE} holds no table of names and values")
    return state


def _differences(tensors: dict[str, Tensor], metadata: Metadata) -> list[str]:
    """Names, shapes and dtypes that differ; torch would read other dtypes silently."""
    saved = metadata.state_dict_metadata
    lines = []
    for name, tensor in tensors.items():
        entry = saved.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            close = difflib.get_close_matches(name, saved, n=1)
            hint = f" (it has {close[0]})" if close else ""
            lines.append(f"{name} {list(tensor.shape)}: not in the checkpoint{hint}")
        elif entry.size != tensor.shape:
            lines.append(f"{name}: shape {list(entry.size)} in the checkpoint, {list(tensor.shape)} here")
        elif entry.properties.dtype != tensor.dtype:
            lines.append(f"{name}: {entry.properties.dtype} in the checkpoint, {tensor.dtype} here")
    return lines


def _read(tensors: dict[str, Tensor], reader: CheckedReader) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        # no_dist: every rank plans its own reads from the same table, so one that fails keeps no other waiting.
        dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
