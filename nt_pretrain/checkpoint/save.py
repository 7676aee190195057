"""Writes a checkpoint so that it is there whole or not at all, and removes old ones.

Every rank writes its shards into ``step_N.tmp`` and hashes them; rank 0 adds the rest of the state, writes the manifest
last and renames the folder. A process killed at any point leaves the checkpoints before this one as they were.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from nt_pretrain.checkpoint.errors import CheckpointError, on_first, together
from nt_pretrain.checkpoint.folders import (
    UNFINISHED,
    candidates,
    folder_name,
    put_in_place,
    remove,
    remove_leftovers,
    sync_folder,
)
from nt_pretrain.checkpoint.manifest import (
    METADATA,
    STATE,
    FileEntry,
    Manifest,
    content_problems,
    file_entry,
    listing_problems,
    read_manifest,
    write_manifest,
    write_synced,
)
from nt_pretrain.checkpoint.metadata import read_metadata


def save(
    root: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    *,
    identity: dict[str, Any],
    group: dist.ProcessGroup | None,
) -> Path:
    """Write ``root/step_00001200``. Collective; returns on every rank once the checkpoint is in place and on the disk.

    A checkpoint of the same step is replaced; what an interrupted save has left is removed first.

    Args:
        root: folder of the checkpoints, on a file system that all ranks share.
        tensors: DTensors (each rank writes its shard) and plain tensors (the same on all ranks, written once).
        state: everything else (JSON: keys are strings); that of rank 0 is written.
        identity: what a run that loads this must agree with (JSON).
        group: all ranks; gloo, or with gloo for CPU tensors.

    Raises:
        CheckpointError: on all ranks, when it fails on any: no space, a folder that is not shared, not JSON.
    """
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values()), "anything else torch would pickle"
    final = root / folder_name(step)
    unfinished = root / (final.name + UNFINISHED)
    doing = f"cannot save {final}"
    on_first(group, doing, lambda: _prepare(root, unfinished))
    try:
        together(group, doing, lambda: _see(unfinished))
        # overwrite=False: torch's default would silently mix this save with an older one in the same folder.
        writer = dcp.FileSystemWriter(unfinished, overwrite=False)
        together(group, doing, lambda: _write_tensors(tensors, writer, group))
        rank = dist.get_rank(group)
        parts = together(group, doing, lambda: _hash_own(unfinished, rank))
        files = {name: entry for part in parts for name, entry in part.items()}
        manifest = Manifest(step, dist.get_world_size(group), torch.__version__, identity, files)
        on_first(group, doing, lambda: _commit(unfinished, final, state, manifest))
    except CheckpointError:
        if dist.get_rank(group) == 0:
            shutil.rmtree(unfinished, ignore_errors=True)  # gives the space back; what stays the next save removes
        raise
    return final


def retain(root: Path, keep: int, *, verified: Path | None = None) -> list[Path]:
    """Keep the newest valid checkpoint and the ``keep - 1`` before it, remove older ones. Call it on one rank only.

    Newer ones, which are damaged, stay until the run has come as far and replaces them.

    Args:
        verified: a checkpoint known to be valid, as the one just saved. Without it the newest ones are read and hashed
            here until a valid one is found; if there is none nothing is removed.

    Returns:
        The removed folders.
    """
    assert keep >= 1
    folders = candidates(root)
    if len(folders) <= keep:
        return []
    if verified in folders:
        newest_valid = folders.index(verified)
    else:
        found = next((index for index, path in enumerate(folders) if _is_valid(path)), None)
        if found is None:
            return []
        newest_valid = found
    removed = folders[newest_valid + keep :]
    for path in removed:
        remove(path)
    return removed


def _is_valid(folder: Path) -> bool:
    try:
        manifest = read_manifest(folder)
        return not (listing_problems(folder, manifest) or content_problems(folder, manifest, list(manifest.files)))
    except (CheckpointError, OSError):
        return False


def _prepare(root: Path, unfinished: Path) -> bool:
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    unfinished.mkdir()
    return True


def _see(unfinished: Path) -> None:
    if not unfinished.is_dir():
        raise CheckpointError(
            f"{unfinished}, made by rank 0, is not seen; run.dir must lie on a file system that all machines share"
        )


def _write_tensors(tensors: dict[str, Tensor], writer: dcp.FileSystemWriter, group: dist.ProcessGroup | None) -> None:
    dcp.save(dict(tensors), storage_writer=writer, process_group=group)


def _hash_own(unfinished: Path, rank: int) -> dict[str, FileEntry]:
    """The files that torch has written for this rank of the group; read back from the machine that wrote them."""
    return {path.name: file_entry(path) for path in sorted(unfinished.glob(f"__{rank}_*.distcp"))}


def _commit(unfinished: Path, final: Path, state: dict[str, Any], manifest: Manifest) -> bool:
    """Add state and manifest, check that the whole can be read, give it its name."""
    write_synced(unfinished / STATE, json.dumps(state, indent=1) + "\n")
    for name in (STATE, METADATA):
        manifest.files[name] = file_entry(unfinished / name)
    read_metadata(unfinished, manifest.files)
    write_manifest(unfinished, manifest)
    if problems := listing_problems(unfinished, manifest):
        raise CheckpointError("; ".join(problems))
    sync_folder(unfinished)
    put_in_place(unfinished, final)
    return True
