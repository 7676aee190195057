"""Jobs of four nodes, one torchrun each: nodes die, come back, stay away, lose their cable."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus
from tests.multinode.jobs import Job
from tests.multinode.nodes import Node
from tests.train import launches

pytestmark = [pytest.mark.multinode, pytest.mark.long, pytest.mark.timeout(600)]
STEPS = 40
OPTIONS = [
    f"train.steps={STEPS}",
    "checkpoint.save_every_steps=8",
    "observe.log_every_steps=1",
    "observe.tensorboard=false",
    "data.workers=0",
    "eval.every_steps=0",
    "eval.unigram_tokens=0",
    "parallel.timeout_seconds=30",
]
FITS_1_TO_4 = ["train.global_batch=24", "data.lanes=24"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def new_job(nodes: list[Node], runs: Path, corpus: Corpus) -> Iterator[Any]:
    made: list[Job] = []

    def make(name: str, *more: str, **settings: Any) -> Job:
        made.append(Job(nodes, runs / name, [*corpus.overrides, *OPTIONS, *more], **settings))
        return made[-1]

    yield make
    for job in made:
        job.stop()


def events(job: Job, *kinds: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in RunDir(job.folder).events.read_text().splitlines()]
    return [line for line in lines if line["kind"] in kinds]


def test_a_node_that_dies_and_comes_back_changes_nothing(new_job: Any) -> None:
    """Four nodes; one, not that with the store, dies at a random step and is started again with the same command."""
    undisturbed = new_job("undisturbed")
    undisturbed.start()
    undisturbed.finish()
    assert [step for step, _, _ in launches.losses(undisturbed.folder)] == list(range(1, STEPS + 1))
    job = new_job("killed")
    job.start()
    job.wait_for_step(random.randint(1, STEPS - 6))
    victim = random.choice([1, 2, 3])
    job.kill_node(victim)
    died = time.monotonic()
    print(f"killed node {victim} after step {launches.last_step(job.folder)}")
    job.start(victim)
    job.wait_for_resume()
    print(f"all four go on after {time.monotonic() - died:.1f} s")
    job.finish()
    launches.assert_same_run(undisturbed.folder, job.folder, STEPS)


def test_nodes_may_stay_away_and_come_back_where_the_batch_fits(new_job: Any) -> None:
    """--nnodes 2:4: three go on without the dead one; when it comes back they save, and four go on from there."""
    job = new_job("elastic", *FITS_1_TO_4, "train.steps=100000", nnodes="2:4", max_restarts=4)
    job.start()
    job.wait_for_step(9)
    job.kill_node(3)
    died = time.monotonic()
    job.wait_for_resume()
    print(f"three go on after {time.monotonic() - died:.1f} s")
    assert "3 ranks" in job.text(0) + job.text(1) + job.text(2)
    job.wait_for_step(launches.last_step(job.folder) + 2)
    job.start(3)
    joined = time.monotonic()
    job.wait_for_resume(2)
    print(f"four go on after {time.monotonic() - joined:.1f} s")
    (stopped,) = events(job, "stop")
    assert stopped["reason"] == "received SIGTERM"
    assert events(job, "resume")[-1]["step"] == stopped["step"], "nothing is lost when a node joins"
    job.wait_for_step(stopped["step"] + 2)
    RunDir(job.folder).stop.touch()
    job.finish()
    status = RunDir(job.folder).read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("stopped", 75), "file STOP ends the job in spite of --max-restarts"


def test_notice_to_one_node_loses_no_step_and_without_the_store_all_end(new_job: Any) -> None:
    """SIGTERM to one torchrun, as before a spot instance goes; then the death of the node with the store."""
    job = new_job("notice", "train.steps=100000")
    job.start()
    job.wait_for_step(3)
    job.agents[3].send_signal(signal.SIGTERM)
    assert job.wait_for_end(3) == {3: 1}
    (stopped,) = events(job, "stop")
    assert stopped["reason"] == "received SIGTERM"
    assert [job.agents[number].poll() for number in (0, 1, 2)] == [None] * 3, "the others wait for a node in its place"
    job.start(3)
    job.wait_for_resume()
    assert events(job, "resume")[-1]["step"] == stopped["step"]
    job.kill_node(0)
    died = time.monotonic()
    assert set(job.wait_for_end(1, 2, 3).values()) == {1}
    print(f"all ended after {time.monotonic() - died:.1f} s")
    job.start()
    job.wait_for_resume(2)
    print(f"all go on {time.monotonic() - died:.1f} s after its death")


def test_nodes_too_few_for_the_batch_are_told_so(new_job: Any) -> None:
    """Two of three nodes stay, and 6 sequences in micro-batches of 2 fit one or three ranks only."""
    job = new_job("misfit", "train.global_batch=6", "data.lanes=6", "train.steps=100000", nnodes="2:3", max_restarts=1)
    job.start(0, 1, 2)
    job.wait_for_step(3)
    job.kill_node(2)
    assert job.wait_for_end(0, 1) == {0: 1, 1: 1}
    both = job.text(0) + job.text(1)
    assert "train.global_batch: 6 is not divisible by 2 ranks x train.micro_batch 2 = 4" in both
    assert "world sizes that fit this configuration: 1, 3" in both


def test_a_cut_link_is_noticed_in_time_and_named(new_job: Any) -> None:
    job = new_job("cut", "train.steps=100000", "parallel.timeout_seconds=8", max_restarts=0)
    job.start()
    job.wait_for_step(5)
    job.nodes[2].cut()
    begin = time.monotonic()
    status = job.wait_for_state("failed", timeout=60)
    print(f"noticed after {time.monotonic() - begin:.1f} s")
    assert set(job.wait_for_end(0, 1, 3).values()) == {1}
    # All ranks wait equally long; one that is a moment later may hear that another has given up before.
    # The one behind the cut asks the store in vain first.
    deadline = time.monotonic() + 30
    while True:
        told = {rank: RunDir(job.folder).rank_log(rank).read_text() for rank in range(4)}
        waited = [rank for rank, text in told.items() if "waited longer than parallel.timeout_seconds (8)" in text]
        left = [rank for rank, text in told.items() if "another rank has gone" in text]
        if set(waited + left) == {0, 1, 2, 3} or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert waited and set(waited + left) == {0, 1, 2, 3}
    assert status.exit_code == (6 if 0 in waited else 1)
    assert any("missing: rank " in text for text in told.values()), "the cut node is named"
    assert "for another rank" in status.message or "another rank has gone" in status.message


def test_restarts_that_cannot_work_are_refused(new_job: Any) -> None:
    """Without its variable torchrun gives new ranks the addresses of dead ones; that must not show after weeks."""
    job = new_job("refused", nnodes="1", max_restarts=1, environment={})
    job.start(0)
    assert job.wait_for_end(0) == {0: 1}
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and run the same command" in job.text(0)
    assert "1 error in the configuration" in job.text(0) and "exitcode  : 2 " in job.text(0)
