"""Where checkpoints lie: ``root/step_00001200``, and how such a folder comes and goes without ever being half there.

Names beside it: ``step_00001200.tmp`` is a save that has not finished (or a checkpoint on its way out) and may be
removed; ``step_00001200.old`` is a checkpoint that a new one of the same step is just replacing.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

UNFINISHED = ".tmp"
REPLACED = ".old"
_NAME = re.compile(r"step_(\d{8,})(\.tmp|\.old)?")


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """Step that the name of a checkpoint folder says; None for any other name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def candidates(root: Path) -> list[Path]:
    """Folders that may be checkpoints, newest first; empty when ``root`` does not exist.

    A ``.old`` folder counts when the one that was to replace it is not there.
    """
    found = {path.name: path for path in _steps(root) if path.suffix != UNFINISHED}
    kept = [path for name, path in found.items() if path.suffix != REPLACED or name.removesuffix(REPLACED) not in found]
    return sorted(kept, key=lambda path: step_of(path) or 0, reverse=True)


def unfinished(root: Path) -> list[Path]:
    """Folders of saves that have not finished, oldest first."""
    return [path for path in _steps(root) if path.suffix == UNFINISHED]


def remove_leftovers(root: Path) -> list[str]:
    """Clear up what a killed save has left; call it on one rank, while nobody else saves.

    Returns:
        What was done, one line each for people; also written to the log.
    """
    done = []
    for path in unfinished(root):
        shutil.rmtree(path)
        done.append(f"{path}: removed, it was left by a save that was interrupted")
    for path in _steps(root):
        if path.suffix == REPLACED:
            final = path.with_suffix("")
            if final.exists():
                remove(path)
                done.append(f"{path}: removed, {final.name} has replaced it")
            else:
                path.rename(final)
                done.append(f"{path}: renamed to {final.name}, the save that was to replace it was interrupted")
    for line in done:
        logger.warning(line)
    return done


def put_in_place(written: Path, final: Path) -> None:
    """Give a complete folder its final name. Whenever the process dies, the old or the new checkpoint is there."""
    replaced = final.with_suffix(REPLACED)
    if final.exists():
        final.rename(replaced)
    written.rename(final)
    sync_folder(final.parent)
    if replaced.exists():
        remove(replaced)


def remove(path: Path) -> None:
    """Delete a folder; renamed first, so that one half deleted cannot be taken for a checkpoint."""
    leaving = path.with_suffix(UNFINISHED)
    if leaving.exists():
        shutil.rmtree(leaving)
    path.rename(leaving)
    shutil.rmtree(leaving)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def _steps(root: Path) -> list[Path]:
    """All folders named as above, in the order of steps."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path) or 0, path.name))
