"""Runs the jobs of a comparison, some side by side; what is finished is not repeated."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nt_pretrain.comparison.grid import Job

RECORD = "comparison.json"
"""What the evaluation of a job has written, in the folder of its run."""


class JobFailed(Exception):
    """A run or its evaluation has failed; the message says which and where to look."""


def record_path(folder: Path, job: Job) -> Path:
    return folder / job.name / "evaluation" / "comparison" / "evaluation.json"


def run_all(
    path: str, jobs: Iterable[Job], folder: Path, harms: str, at_once: int, tell: Callable[[str], None]
) -> None:
    """Train and evaluate what is not done, ``at_once`` side by side, each on one core.

    Raises:
        JobFailed: one has failed; those beside it have ended. The same call goes on.
    """
    waiting = [job for job in {job.name: job for job in jobs}.values() if not record_path(folder, job).is_file()]
    total, begin, done = len(waiting), time.monotonic(), 0
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    try:
        while running or (waiting and not failed):
            while waiting and len(running) < at_once and not failed:
                job = waiting.pop(0)
                running[job.name] = _start(path, job, folder, harms)
            time.sleep(0.05)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                done += 1
                left = (time.monotonic() - begin) / done * (total - done)
                tell(f"{done} of {total} runs, {name}" + (f", {left / 60:.0f} min left" if left > 5 else ""))
                if process.returncode:
                    failed.append(f"{name} ended with exit code {process.returncode}: {folder / name}/console.log")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        raise JobFailed("\n".join(failed))


def _start(path: str, job: Job, folder: Path, harms: str) -> subprocess.Popen[bytes]:
    run = folder / job.name
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "launch/compare.py", "--job", str(run), harms, path, *job.options]
    command += [f"run.dir={folder}", f"run.name={job.name}", f"run.seed={job.seed}", "run.threads_per_rank=1"]
    with (run / "console.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
