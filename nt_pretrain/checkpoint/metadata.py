"""Reads torch.distributed.checkpoint's table of contents (``.metadata``) without trusting it.

The file is a pickle, which can run any code when it is read in the ordinary way, and a checkpoint may come from
anybody. Only the few names that the table really consists of are resolved here, and what comes out is checked before
torch uses it.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint.filesystem as dcp_filesystem
import torch.distributed.checkpoint.metadata as dcp_metadata
from torch.distributed.checkpoint import FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.manifest import METADATA, FileEntry

_CLASSES = {
    "Metadata",
    "MetadataIndex",
    "TensorStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
}
_PATHS = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}


def _path_as_text(*parts: str) -> str:
    """The folder a checkpoint was saved in means nothing where it is read, perhaps on another system."""
    return "/".join(parts)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == dcp_metadata.__name__ and name in _CLASSES:
            return getattr(dcp_metadata, name)
        if module == dcp_filesystem.__name__ and name == "_StorageInfo":
            return dcp_filesystem._StorageInfo
        if (module, name) in _PATHS:
            return _path_as_text
        if module == "torch" and name == "Size":
            return torch.Size
        if module == "torch" and name.isidentifier() and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch.serialization" and name == "_get_layout":
            return torch.serialization._get_layout
        raise CheckpointError(
            f"it asks for {module}.{name}, which no table of contents needs; do not use this checkpoint"
        )


def read_metadata(folder: Path, files: dict[str, FileEntry]) -> Metadata:
    """Read and check the table of contents of a checkpoint folder.

    Args:
        files: the files of the manifest; the table may point to no other.

    Raises:
        CheckpointError: the file is missing or damaged, asks for code, or does not describe whole tensors in ``files``.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        problem = None if isinstance(metadata, Metadata) else "it is no table of contents"
        problem = problem or _problem(metadata, files)
    except Exception as error:  # what a hostile or damaged pickle raises is not foreseeable
        text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{METADATA} cannot be used: {text}") from None
    if problem:
        raise CheckpointError(f"{METADATA} cannot be used: {problem}")
    return metadata


def _problem(metadata: Metadata, files: dict[str, FileEntry]) -> str | None:
    """What is wrong with the table, or None. torch checks none of this when it loads."""
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            return f"{name} is not a tensor; only tensors are read"
        covered = 0
        for index, chunk in enumerate(entry.chunks):
            count = math.prod(chunk.sizes)
            covered += count
            info = metadata.storage_data.get(MetadataIndex(name, chunk.offsets, index)) if count else None
            if count and (info is None or info.relative_path not in files):
                return f"{name}: the part at {list(chunk.offsets)} is in no file"
            if info and not 0 <= info.offset <= info.offset + info.length <= files[info.relative_path].bytes:
                return f"{name}: the part at {list(chunk.offsets)} ends beyond {info.relative_path}"
        if covered != math.prod(entry.size):
            return f"{name}: {covered:,} of {math.prod(entry.size):,} elements are stored"
    return None


class CheckedReader(FileSystemReader):
    """torch's reader with a table of contents that :func:`read_metadata` has read; it never unpickles one itself."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:
        # Without the keyword arguments of the original torch does not fall back to tables of single ranks.
        return self._metadata
