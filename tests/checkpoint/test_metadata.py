"""A table of contents from a stranger: code in it does not run, and it can point to nothing outside the checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import load_tensors, newest_valid
from nt_pretrain.checkpoint.manifest import METADATA, FileEntry, file_entry, read_manifest, write_manifest
from nt_pretrain.checkpoint.metadata import read_metadata
from tests.checkpoint.samples import expect, load_newest, placed, save_steps, whole
from tests.gloo import run_ranks

pytestmark = pytest.mark.timeout(60)

FILES = {"__0_0.distcp": FileEntry(1000, "")}


class Payload:
    """Runs a shell command when it is unpickled in the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def table(dtype: torch.dtype = torch.float32) -> Metadata:
    """A sound table: one tensor of 4 x 3 in two parts."""
    chunks = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([2, 3])) for row in (0, 2)]
    return Metadata(
        state_dict_metadata={
            "w": TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size([4, 3]), chunks),
        },
        planner_data={"w": ("w",)},
        storage_data={
            MetadataIndex("w", torch.Size([2 * index, 0]), index): _StorageInfo("__0_0.distcp", 500 * index, 500)
            for index in (0, 1)
        },
    )


def write(folder: Path, content: Any) -> None:
    (folder / METADATA).write_bytes(pickle.dumps(content))


def plant(folder: Path, content: Any) -> None:
    """Replace the table of a checkpoint and make the manifest fit, as someone who means harm would."""
    write(folder, content)
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, files=manifest.files | {METADATA: file_entry(folder / METADATA)}))


def load_directly(rank: int, world: int, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path, placed(whole(0), world))
    return str(caught.value)


def find(rank: int, world: int, root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        newest_valid(root, group=dist.group.WORLD)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_a_sound_table_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    write(tmp_path, table(dtype))
    assert read_metadata(tmp_path, FILES) == table(dtype)


def test_payload_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    root = tmp_path / "checkpoints"
    run_ranks(save_steps, 1, root, [1, 2])
    payload = table()
    payload.planner_data = Payload(marker)
    plant(root / "step_00000002", payload)
    found = expect(run_ranks(load_newest, 2, root), 1)
    assert "it asks for posix.system, which no table of contents needs" in found.skipped[0]
    [message] = run_ranks(load_directly, 1, root / "step_00000002")
    assert "posix.system" in message
    plant(root / "step_00000001", payload)
    assert "posix.system" in run_ranks(find, 2, root)[1]
    assert not marker.exists()
    with (root / "step_00000002" / METADATA).open("rb") as file:
        pickle.load(file)
    assert marker.exists(), "the payload is a real one"


@pytest.mark.parametrize(
    "reference",
    [b"cbuiltins\neval\n.", b"ctorch\nload\n.", b"ctorch.serialization\nload\n.", b"cpathlib\nPath\n."],
)
def test_other_names_are_refused(tmp_path: Path, reference: bytes) -> None:
    (tmp_path / METADATA).write_bytes(reference)
    with pytest.raises(CheckpointError, match=r"it asks for .*, which no table of contents needs"):
        read_metadata(tmp_path, FILES)


def test_dotted_names_reach_nothing(tmp_path: Path) -> None:
    dotted = b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93."
    (tmp_path / METADATA).write_bytes(dotted)
    with pytest.raises(CheckpointError, match=r"it asks for torch\.serialization\.os"):
        read_metadata(tmp_path, FILES)


def elsewhere(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../step_00000001/__0_0.distcp"


def beyond(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.length = 700


def negative(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.offset = -1


def half(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].chunks.pop()


def lost(metadata: Metadata) -> None:
    metadata.storage_data.popitem()


def pickled(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"] = BytesStorageMetadata()


def odd(metadata: Metadata) -> None:
    metadata.state_dict_metadata = [1, 2]  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elsewhere, r"w: the part at \[0, 0\] is in no file"),
        (beyond, r"w: the part at \[2, 0\] ends beyond __0_0.distcp"),
        (negative, r"w: the part at \[0, 0\] ends beyond"),
        (half, "w: 6 of 12 elements are stored"),
        (lost, r"w: the part at \[2, 0\] is in no file"),
        (pickled, "BytesStorageMetadata, which no table of contents needs"),
        (odd, "AttributeError"),
    ],
)
def test_a_table_that_is_not_sound(tmp_path: Path, change: Callable[[Metadata], None], message: str) -> None:
    content = table()
    change(content)
    write(tmp_path, content)
    with pytest.raises(CheckpointError, match=f"^.metadata cannot be used: .*{message}"):
        read_metadata(tmp_path, FILES)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", pickle.dumps({"w": 1})])
def test_no_table_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METADATA).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^.metadata cannot be used: "):
        read_metadata(tmp_path, FILES)
