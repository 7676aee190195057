"""``launch/pretrain.py`` on a disk that stops: a save waits right before its commit while the run's file HOLD names it.

Not a test: tests start it with torchrun. It makes a file HELD once it waits.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any


def hold(name: str, args: tuple[Any, ...]) -> None:
    if name != "open" or not str(args[0]).endswith(".tmp/state.json"):
        return
    saving = Path(args[0]).parent
    beside = saving.parents[1]
    while (beside / "HOLD").exists() and (beside / "HOLD").read_text() == saving.name:
        (beside / "HELD").touch()
        time.sleep(0.02)


if __name__ == "__main__":
    sys.addaudithook(hold)
    runpy.run_path("launch/pretrain.py", run_name="__main__")
