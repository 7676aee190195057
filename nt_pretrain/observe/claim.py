"""One run at a time in a run directory.

Ranks can outlive the torchrun that started them, for as long as they need to notice and to save. A second start in that
time must wait, or both would write the same checkpoints and metrics.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

PATIENCE_SECONDS = 30.0


def claim(path: Path, note: Callable[[str], None], *, patience: float = PATIENCE_SECONDS) -> IO[str] | str:
    """Take the lock file ``path`` for the life of this process; the system lets go of it whatever ends the process.

    Args:
        note: told if another process holds it, before waiting.
        patience: seconds to wait for the other one.

    Returns:
        The open lock file, to be kept; or, in words, who holds it.
    """
    file = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() > deadline:
                file.close()
                return holder
            if not told:
                note(f"{path.parent} is in use by {holder}; waiting up to {patience:.0f} s for it to end")
                told = True
            time.sleep(0.2)
        except OSError:
            return file  # this file system has no locks
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
