"""The manifest of a checkpoint: what it is, and size and hash of every file in it.

A checkpoint without a manifest is not one: the manifest is written last. torch.distributed.checkpoint reads files with
flipped bits without complaint, so nothing is loaded before its hash is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.folders import step_of

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
METADATA = ".metadata"


@dataclass(frozen=True)
class FileEntry:
    """Length in bytes and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``.

    Attributes:
        world_size: ranks that saved; any number may load.
        identity: what must agree with the run that loads (JSON).
        files: every file of the folder but the manifest, by name.
    """

    step: int
    world_size: int
    torch: str
    identity: dict[str, Any]
    files: dict[str, FileEntry]


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(os.fstat(file.fileno()).st_size, digest)


def write_synced(path: Path, text: str) -> None:
    """Write a small file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"format": FORMAT} | asdict(manifest)
    write_synced(folder / MANIFEST, json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint folder.

    Raises:
        CheckpointError: there is none, it is damaged, of another format version or of another folder.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {MANIFEST}: not a checkpoint of this program, or not a whole one") from None
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST} is damaged, it is not JSON: {error}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{MANIFEST} names no format: not a checkpoint of this program")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{MANIFEST} has format {content['format']!r}, this program reads format {FORMAT}; "
            "use the version of the program that wrote it"
        )
    said = content.pop("sha256", None)
    # Without its last byte, a newline, the file is still JSON; but then it is not what was written.
    if said != _digest(content) or not text.endswith(b"}\n"):
        raise CheckpointError(f"{MANIFEST} is damaged, its own hash does not fit its content")
    del content["format"]
    try:
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        manifest = Manifest(**content, files=files)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} lacks a field or has one too many: {error}") from None
    if manifest.step != step_of(folder):
        raise CheckpointError(
            f"{MANIFEST} says step {manifest.step}, the folder is named {folder.name}: renamed or copied"
        )
    return manifest


def listing_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are missing, of another length, or not the manifest's; nothing is read."""
    problems = []
    for name, entry in manifest.files.items():
        path = folder / name
        if Path(name).name != name or name in ("", "..", MANIFEST):
            problems.append(f"{MANIFEST} names {name!r}, which is no file of this folder")
        elif not path.exists():
            problems.append(f"{name} is missing")
        elif not path.is_file():
            problems.append(f"{name} is not a file")
        elif (size := path.stat().st_size) != entry.bytes:
            how = "truncated" if size < entry.bytes else "longer than it was written"
            problems.append(f"{name} is {how}: {size:,} bytes, {entry.bytes:,} expected")
    problems += [f"{name} is missing in {MANIFEST}" for name in (STATE, METADATA) if name not in manifest.files]
    extra = sorted({path.name for path in folder.iterdir()} - set(manifest.files) - {MANIFEST})
    problems += [f"{name} does not belong to it; move it away if all else is well" for name in extra]
    return problems


def content_problems(folder: Path, manifest: Manifest, names: list[str]) -> list[str]:
    """Those of the files ``names`` whose bytes are not what was written."""
    problems = []
    for name in names:
        try:
            same = file_entry(folder / name) == manifest.files[name]
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
        else:
            if not same:
                problems.append(f"{name} is damaged: its length is right, its content is not what was written")
    return problems


def shares(manifest: Manifest, world_size: int) -> list[list[str]]:
    """The files split over ranks so that each has about as many bytes to hash."""
    parts: list[list[str]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for name in sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name)):
        lightest = loads.index(min(loads))
        parts[lightest].append(name)
        loads[lightest] += manifest.files[name].bytes
    return parts


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
