"""What the exit code of a rank means, and how a failing rank tells torchrun why.

torchrun itself exits with 1 whatever a rank returned; the rank's own code stands in ``status.json`` of the run
directory.
"""

from __future__ import annotations

import json
import os
import time
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``launch/pretrain.py``. A batch system should requeue on STOPPED and page someone on the others."""

    FINISHED = 0
    CONFIGURATION = 2
    DATA = 3
    CHECKPOINT = 4
    DIVERGED = 5
    HANG = 6
    TOPOLOGY = 7
    STOPPED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


MEANING: dict[ExitCode, str] = {
    ExitCode.FINISHED: "finished",
    ExitCode.CONFIGURATION: "the configuration is wrong",
    ExitCode.DATA: "the data cannot be read",
    ExitCode.CHECKPOINT: "a checkpoint cannot be read or written",
    ExitCode.DIVERGED: "the loss diverged",
    ExitCode.HANG: "a rank did not answer in time",
    ExitCode.TOPOLOGY: "ranks hold different topologies",
    ExitCode.STOPPED: "stopped early and saved: the same command goes on",
}


def report_failure(message: str) -> None:
    """Write ``message`` where torchrun looks for a rank's last words, so that its closing table shows them.

    torchrun gives every rank a file name in ``TORCHELASTIC_ERROR_FILE``; without that variable nothing happens. The
    first message wins: what comes later is usually a consequence. A file that cannot be written is no reason to fail
    differently.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    # The shape torchrun reads. Without a "py_callstack" its table shows the message where a traceback would stand.
    record = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            json.dump(record, file)
    except OSError:
        return
