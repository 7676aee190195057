"""Wishes that reach a run from outside: signals, files STOP and SAVE in its run directory, the end of its launcher.

A signal may reach one rank only, or all of them at different steps. Ranks therefore agree after every step on what to
do, by one small collective on the CPU.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist

from nt_pretrain.checkpoint.background import Progress
from nt_pretrain.config.schema import CheckpointSection
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.collectives import reduce_over
from nt_pretrain.parallel.mesh import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class Decision:
    """What all ranks do after this step.

    Attributes:
        reason: of stop or save, for people.
        settle: a save in the background has ended, well or not.
    """

    stop: bool
    save: bool
    reason: str
    settle: bool


class Requests:
    """Collects wishes on this rank, and agrees on them with the others."""

    def __init__(self, rundir: RunDir, checkpoint: CheckpointSection, ranks: Ranks) -> None:
        self._rundir, self._checkpoint, self._ranks = rundir, checkpoint, ranks
        self._signal = 0
        self._stopped_by_file = False
        self._last_save = time.monotonic()
        # Only torchrun is known to live as long as its ranks; a shell that started one rank may leave before it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def listen(self) -> None:
        """From now on the signals stop the run after the step in progress. Repeats change nothing.

        A terminal's Ctrl-C reaches a rank twice, directly and through torchrun, so a second signal is no second wish.
        """
        for number in SIGNALS:
            # nohup makes a run deaf to SIGHUP, which is then meant.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    @property
    def ends_the_job(self) -> bool:
        """Whether file STOP ended the run under a torchrun that restarts ranks.

        A signal may mean one node only, or that nodes join or leave; the restart that follows an exit code other than 0
        is then wanted. STOP means the job, so its ranks must leave with 0.
        """
        return self._stopped_by_file and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0

    def stopping(self) -> bool:
        """Whether a wish to stop came between two trainings, or in the last step of one. Collective."""
        return self.decide(Progress.NONE).stop or self._stopped_by_file

    def saved(self) -> None:
        """A checkpoint was begun; the minutes count from here."""
        self._last_save = time.monotonic()

    def decide(self, saving: Progress) -> Decision:
        """Collective: what all ranks do now; ``saving`` is how far this rank's save in the background is."""
        stop_file = save_file = overdue = False
        if self._ranks.rank == 0:
            stop_file, save_file = self._rundir.stop.exists(), self._rundir.save.exists()
            minutes = self._checkpoint.save_every_minutes
            overdue = minutes > 0 and time.monotonic() - self._last_save > 60 * minutes
        orphaned = self._launcher not in (None, os.getppid())
        wishes = torch.tensor([self._signal, stop_file, save_file, overdue, orphaned, saving], dtype=torch.int64)
        reduce_over(wishes, self._ranks.control, dist.ReduceOp.MAX)
        number, stop_file, save_file, overdue, orphaned, progress = wishes.tolist()
        settle = Progress(progress).has_ended
        if self._ranks.rank == 0:
            for path, seen in ((self._rundir.stop, stop_file), (self._rundir.save, save_file)):
                if seen:
                    path.unlink(missing_ok=True)
        if number:
            return Decision(True, True, f"received {signal.Signals(number).name}", settle)
        if orphaned:
            return Decision(True, True, "torchrun has gone", settle)
        if stop_file:
            self._stopped_by_file = True
            return Decision(True, True, "file STOP found in the run directory", settle)
        if save_file:
            return Decision(False, True, "file SAVE found in the run directory", settle)
        reason = f"{self._checkpoint.save_every_minutes:g} minutes since the last one"
        return Decision(False, bool(overdue), reason, settle)
