"""Runs the jobs of a comparison, some side by side; what is finished is not repeated."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nt_pretrain.comparison.grid import Job
from nt_pretrain.parallel.mesh import leave

# Forked from a process that has loaded torch and used none of it: a start of its own takes seconds, as small runs do.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["nt_pretrain.train.run", "nt_pretrain.evaluation.run"])

RunJob = Callable[[list[str]], int]
"""Arguments of launch/compare.py for one job to its exit code; a function of that script."""

RECORD = "comparison.json"
"""What the evaluation of a job has written, in the folder of its run."""


class JobFailed(Exception):
    """A run or its evaluation has failed; the message says which and where to look."""


def record_path(folder: Path, job: Job) -> Path:
    return folder / job.name / "evaluation" / "comparison" / "evaluation.json"


def run_all(
    path: str, jobs: Iterable[Job], folder: Path, harms: str, at_once: int, run_job: RunJob, tell: Callable[[str], None]
) -> None:
    """Train and evaluate what is not done, ``at_once`` side by side, each on one core.

    Raises:
        JobFailed: one has failed; those beside it have ended. The same call goes on.
    """
    waiting = [job for job in {job.name: job for job in jobs}.values() if not record_path(folder, job).is_file()]
    total, begin, done = len(waiting), time.monotonic(), 0
    running: dict[str, multiprocessing.process.BaseProcess] = {}
    # Read when torch is loaded, by the process that all are forked from.
    os.environ["OMP_NUM_THREADS"] = "1"
    failed: list[str] = []
    try:
        while running or (waiting and not failed):
            while waiting and len(running) < at_once and not failed:
                job = waiting.pop(0)
                running[job.name] = _start(path, job, folder, harms, run_job)
            time.sleep(0.05)
            for name, process in list(running.items()):
                if process.is_alive():
                    continue
                del running[name]
                done += 1
                left = (time.monotonic() - begin) / done * (total - done)
                tell(f"{done} of {total} runs, {name}" + (f", {left / 60:.0f} min left" if left > 5 else ""))
                if process.exitcode:
                    failed.append(f"{name} ended with exit code {process.exitcode}: {folder / name}/console.log")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    if failed:
        raise JobFailed("\n".join(failed))


def _start(path: str, job: Job, folder: Path, harms: str, run_job: RunJob) -> multiprocessing.process.BaseProcess:
    run = folder / job.name
    run.mkdir(parents=True, exist_ok=True)
    arguments = ["--job", str(run), harms, path, *job.options]
    arguments += [f"run.dir={folder}", f"run.name={job.name}", f"run.seed={job.seed}", "run.threads_per_rank=1"]
    process = CONTEXT.Process(target=_become, args=(run_job, arguments, run / "console.log"))
    process.start()
    return process


def _become(run_job: RunJob, arguments: list[str], log: Path) -> None:
    """One job to its end, in this process, with its output appended to ``log``."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    leave(run_job(arguments), together=True)
