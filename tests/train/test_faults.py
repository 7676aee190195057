"""Faults of one process: the others hear of it, the status says why, and the same command goes on."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nt_pretrain.config.load import load_config
from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.shards import index_path
from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus
from tests.train import launches

OPTIONS = ["train.steps=40", "checkpoint.save_every_steps=10", "observe.log_every_steps=1"]
ALONE = [*OPTIONS, "data.workers=0"]
"""Ranks that read themselves: no time for readers to start where they are not what is tested."""


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    launches.finish(launches.start(2, folder, *corpus.overrides, *OPTIONS), folder)
    return folder


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_killed_torchrun_and_the_same_command_at_once(corpus: Corpus, undisturbed: Path) -> None:
    """Its ranks live on: they notice and save; the second start waits for them and goes on."""
    folder = undisturbed.parent / "orphans"
    process = launches.start(2, folder, *corpus.overrides, *OPTIONS)
    launches.wait_for_step(process, folder, 12)
    process.kill()
    launches.finish(launches.start(2, folder, *corpus.overrides, *OPTIONS), folder)
    text = (folder / "console.log").read_text()
    assert ": torchrun has gone" in text
    steps = [json.loads(line) for line in RunDir(folder).events.read_text().splitlines()]
    stopped = next(event["step"] for event in steps if event["kind"] == "stop")
    assert f"resuming {folder} from step {stopped} " in text
    launches.assert_same_run(undisturbed, folder, 40)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_starts_in_one_run_directory(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "twice"
    options = [*corpus.overrides, *OPTIONS, "train.steps=100000"]
    first = launches.start(1, folder, *options)
    launches.wait_for_step(first, folder, 1)
    second = launches.start(1, folder, *options)
    launches.finish(second, folder, expect=1)
    text = (folder / "console.log").read_text()
    rank = launches.workers(first)[0].pid
    assert f"{folder} is in use by process {rank} on " in text
    assert "configuration error" in text and "or give another run.name" in text
    assert first.poll() is None, "the first goes on"
    launches.kill_tree(first)


@pytest.mark.timeout(300)
def test_bad_data_on_one_rank_is_told_by_the_run(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "bad_data"
    data = Path(shutil.copytree(corpus.data, folder / "data"))
    config = load_config(launches.TINY, [*corpus.overrides, *OPTIONS])
    split = Split.open(data / "train", load_tokenizer(config.data.tokenizer))
    order = order_of(split, seed=config.run.seed, lanes=config.lanes, window=config.data.window)
    number, document = order.document(0, config.lanes - 1, 1)
    shard = data / "train" / split.manifest.shards[number].name
    entry = np.load(index_path(shard))[document]
    content = bytearray(shard.read_bytes())
    content[int(entry["offset"]) + 5] ^= 1
    shard.write_bytes(content)
    options = [*corpus.overrides, *OPTIONS, f"data.path={data}"]
    launches.finish(launches.start(2, folder, *options), folder, expect=1)
    status = RunDir(folder).read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 3)
    assert f"{shard}: document {document} " in status.message
    assert "(on rank 1 of 2)" in status.message
    assert 'File "' + str(launches.ROOT / "nt_pretrain") not in launches.tail(folder)


@pytest.mark.timeout(300)
def test_a_rank_that_hangs_is_named_by_its_silence(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "hang"
    options = [*corpus.overrides, *ALONE, "train.steps=100000", "parallel.timeout_seconds=4"]
    process = launches.start(2, folder, *options)
    launches.wait_for_step(process, folder, 3)
    pid = RunDir(folder).read_status().pid  # type: ignore[union-attr]
    (other,) = [worker for worker in launches.workers(process) if worker.pid != pid]
    other.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while (status := RunDir(folder).read_status()) is None or status.state == "running":
        assert time.monotonic() < deadline, "no end within 60 s"
        time.sleep(0.1)
    other.kill()
    launches.finish(process, folder, expect=1)
    assert (status.state, status.exit_code) == ("failed", 6)
    assert "rank 0 waited longer than parallel.timeout_seconds (4) for another rank" in status.message
    assert "missing: rank 1 (step " in status.message
    log = RunDir(folder).rank_log(0).read_text()
    assert log.index(" for 2 s; missing: rank 1 (step ") < log.index("parallel.timeout_seconds (4)"), "a warning before"


@pytest.mark.timeout(300)
def test_a_kill_between_checkpoint_and_validation_loses_no_validation(corpus: Corpus, undisturbed: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, undisturbed.parent / "unvalidated"))
    rundir = RunDir(folder)
    before = read_lines(rundir.metrics)
    rundir.metrics.write_text("".join(json.dumps(x) + "\n" for x in before if "validation/loss_ensemble" not in x))
    launches.finish(launches.start(2, folder, *corpus.overrides, *ALONE), folder)
    last = [line for line in before if "validation/loss_ensemble" in line][-1]
    (made,) = [line for line in read_lines(rundir.metrics) if "validation/loss_ensemble" in line]
    assert {**made, "time": ""} == {**last, "time": ""}


@pytest.mark.timeout(300)
def test_checkpoints_that_cannot_be_read_are_told_by_the_status(corpus: Corpus, undisturbed: Path) -> None:
    """The status of before says finished; a batch system must not believe it."""
    folder = Path(shutil.copytree(undisturbed, undisturbed.parent / "unreadable"))
    for manifest in (folder / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    launches.finish(launches.start(2, folder, *corpus.overrides, *OPTIONS, "train.steps=42"), folder, expect=1)
    status = RunDir(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 4)
    assert "can be used" in status.message and "checkpoint error: " in status.message
    assert "ERROR nt_pretrain: checkpoint error: " in RunDir(folder).rank_log(1).read_text()


@pytest.mark.timeout(300)
def test_moments_kept_warm_do_not_move_weights_once_they_are_not(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "warm"
    warm = [*corpus.overrides, *ALONE, "train.steps=12", "sparsity.grown_moments=warm"]
    launches.finish(launches.start(1, folder, *warm), folder)
    saved = launches.final_tensors(folder, 12)
    name = "heads.0.output.weight"
    inactive = saved[f"active.{name}"] == 0
    assert saved[f"first_moment.{name}"][inactive].any(), "nothing was warm, so nothing is tested"
    mean = [*corpus.overrides, *ALONE, "train.steps=14", "sparsity.grown_moments=mean"]
    launches.finish(launches.start(1, folder, *mean), folder)
    saved = launches.final_tensors(folder, 14)
    for key, flags in saved.items():
        if key.startswith("active."):
            weight = saved["model." + key.removeprefix("active.")]
            assert not weight[flags == 0].any(), key


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tensorboard_of_a_run_killed_before_its_first_checkpoint(corpus: Corpus, undisturbed: Path) -> None:
    folder = undisturbed.parent / "early"
    process = launches.start(1, folder, *corpus.overrides, *OPTIONS)
    launches.wait_for_step(process, folder, 4)
    launches.kill_tree(process)
    launches.finish(launches.start(1, folder, *corpus.overrides, *OPTIONS), folder)
    board = EventAccumulator(str(RunDir(folder).tensorboard), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in board.Scalars("train/loss")] == list(range(1, 41))
