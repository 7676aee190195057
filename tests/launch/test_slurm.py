"""launch/slurm.sbatch, run for real but for the scheduler: stand-ins of scontrol and srun start two "nodes" here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus
from tests.train import launches

pytestmark = pytest.mark.long

SCRIPT = "launch/slurm.sbatch"

SCONTROL = """#!/bin/bash
case "$1" in
    show) printf '127.0.0.1\\n127.0.0.2\\n' ;;
    requeue) echo "$2" >> "$STANDIN/requeued" ;;
    *) exit 1 ;;
esac
"""
# As srun does: one task a node, the variables of the node, signals passed on, the highest exit code of the tasks.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for node in 0 1; do
    SLURM_NODEID=$node SLURMD_NODENAME=127.0.0.$((node + 1)) "$@" &
    tasks+=($!)
done
for name in USR1 TERM; do trap "kill -$name ${tasks[*]}" $name; done
code=0
for task in "${tasks[@]}"; do
    while wait "$task"; one=$?; kill -0 "$task" 2>/dev/null; do :; done
    ((one > code)) && code=$one
done
exit $code
"""


@pytest.fixture
def scheduler(tmp_path: Path) -> Path:
    """Folder of the stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def environment(scheduler: Path, restarts: int = 0) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{scheduler}:{os.environ['PATH']}",
        "STANDIN": str(scheduler),
        "BIN": str(Path(sys.executable).parent),
        "RANKS_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
        "SLURM_SUBMIT_DIR": str(launches.ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "two",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_RESTART_COUNT": str(restarts),
    }


def submit(scheduler: Path, folder: Path, *overrides: str, restarts: int = 0) -> subprocess.Popen[str]:
    """What slurmd does on the first node of the job: run a copy of the script there, from elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = shutil.copy(launches.ROOT / SCRIPT, scheduler / "slurm_script")
    arguments = ["bash", copy, launches.TINY, f"run.dir={folder.parent}", f"run.name={folder.name}", *overrides]
    with (folder / "console.log").open("a") as log:
        return subprocess.Popen(
            arguments, cwd="/", env=environment(scheduler, restarts), stdout=log, stderr=subprocess.STDOUT, text=True
        )


def options(corpus: Corpus, steps: int) -> list[str]:
    return [
        *corpus.overrides,
        *(
            "run.threads_per_rank=1",
            "optim.warmup_steps=1",
            "observe.log_every_steps=1",
            "data.workers=0",
            "observe.tensorboard=false",
            f"train.steps={steps}",
        ),
    ]


@pytest.mark.timeout(400)
def test_notice_saves_and_queues_again_and_the_next_start_resumes(
    corpus: Corpus, scheduler: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "slurm"
    logs = launches.ROOT / "logs" / f"slurm-{os.getpid()}"
    try:
        job = submit(scheduler, folder, *options(corpus, 100_000))
        launches.wait_for_step(job, folder, 3)
        job.send_signal(signal.SIGUSR1)
        launches.finish(job, folder, timeout=150, expect=75)
        status = RunDir(folder).read_status()
        assert status is not None
        assert (status.state, status.exit_code) == ("stopped", 75)
        assert f"stopping after step {status.step}: received SIGUSR1" in (folder / "console.log").read_text()
        assert (scheduler / "requeued").read_text().split() == [str(os.getpid())]
        again = submit(scheduler, folder, *options(corpus, status.step + 3), restarts=1)
        launches.finish(again, folder, timeout=150)
        assert f"resuming {folder} from step {status.step} " in (folder / "console.log").read_text()
        assert launches.last_step(folder) == status.step + 3
        assert len((scheduler / "requeued").read_text().split()) == 1, "a finished job is not queued again"
        for attempt, node in (("0", "127.0.0.1"), ("0", "127.0.0.2"), ("1", "127.0.0.1")):
            assert list((logs / attempt / node).rglob("stderr.log")), f"log of the rank on {node}"
    finally:
        shutil.rmtree(logs, ignore_errors=True)


@pytest.mark.timeout(300)
def test_a_cancelled_job_saves_and_is_not_queued_again(corpus: Corpus, scheduler: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "cancelled"
    try:
        job = submit(scheduler, folder, *options(corpus, 100_000))
        launches.wait_for_step(job, folder, 2)
        job.send_signal(signal.SIGTERM)
        launches.finish(job, folder, timeout=150, expect=75)
        assert not (scheduler / "requeued").exists()
    finally:
        shutil.rmtree(launches.ROOT / "logs" / f"slurm-{os.getpid()}", ignore_errors=True)


def test_mistakes_are_told_before_anything_starts(scheduler: Path, tmp_path: Path) -> None:
    (scheduler / "srun").write_text("#!/bin/bash\necho srun was called\n")
    job = submit(scheduler, tmp_path / "typo", "train.stpes=3")
    assert job.wait(60) == 2
    text = launches.tail(tmp_path / "typo")
    assert "train.stpes" in text and "train.steps" in text
    assert "srun was called" not in text
    nothing = subprocess.run(["bash", SCRIPT], cwd=launches.ROOT, capture_output=True, text=True, check=False)
    assert nothing.returncode == 2 and "usage: sbatch" in nothing.stderr


def test_bash_reads_the_script() -> None:
    subprocess.run(["bash", "-n", SCRIPT], cwd=launches.ROOT, check=True)


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm here: sbatch is missing")
def test_slurm_takes_the_script() -> None:
    command = ["sbatch", "--test-only", SCRIPT, launches.TINY]
    done = subprocess.run(command, cwd=launches.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
