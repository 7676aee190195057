"""Files and folders that appear complete or not at all, whatever interrupts their making."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nt_pretrain.data.errors import DataError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which stands at ``path`` once the block has ended and all its bytes are on disk."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which stands at ``path`` once the block has ended. What an earlier attempt left is cleared.

    Raises:
        DataError: something is at ``path`` already; nothing of it is touched.
    """
    _free(path)
    unfinished = path.absolute().with_name(path.absolute().name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        _sync_folder(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync_folder(path.absolute().parent)


@contextmanager
def resumed_folder(path: Path, plan: str) -> Iterator[Path]:
    """As :func:`whole_folder`, for work of hours: what is in the folder when the block ends early stays for next time.

    Args:
        plan: a digest of all that decides what the folder will hold; work begun under another is not taken up.

    Raises:
        DataError: something is at ``path`` already, was begun under another plan, or is being made by another process.
    """
    _free(path)
    unfinished = path.absolute().with_name(path.absolute().name + ".partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    with (unfinished / "plan").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{unfinished} is being filled by another command; wait for it, or end it") from None
        file.seek(0)
        begun = file.read()
        if begun not in ("", plan):
            raise DataError(
                f"{unfinished} was begun from other inputs or with other options; give those again to go on "
                "with it, or delete it to begin anew"
            )
        if not begun:
            file.write(plan)
            file.flush()
        yield unfinished
        _sync_folder(unfinished)
        unfinished.rename(path)
        # Only now: a kill before the rename must not leave a folder that any plan would take up.
        (path / "plan").unlink()
    _sync_folder(path.absolute().parent)


def _free(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{path} exists and was not made by this command; choose another --out, or delete it yourself")


def _sync_folder(path: Path) -> None:
    """A rename is on disk only when the folder that holds the name is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
