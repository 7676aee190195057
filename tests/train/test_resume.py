"""Whole runs by torchrun: killed, interrupted and resumed ones equal undisturbed ones bit for bit."""

import json
import random
import signal

import pytest

from nt_pretrain.observe.rundir import RunDir
from tests.train import launches

STEPS = 60
OPTIONS = [
    f"train.steps={STEPS}",
    "sparsity.update_every=7",
    "checkpoint.save_every_steps=10",
    "eval.every_steps=25",
    "observe.log_every_steps=1",
]
ALONE = [*OPTIONS, "data.workers=0"]
"""Ranks that read themselves: no time for readers to start where they are not what is tested."""


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    launches.finish(launches.start(2, folder, *corpus.overrides, *OPTIONS), folder)
    assert [step for step, _, _ in launches.losses(folder)] == list(range(1, STEPS + 1))
    return folder


@pytest.mark.timeout(600)
def test_a_run_killed_twice_equals_an_unkilled_one(corpus, undisturbed):
    """kill -9 of one rank at a random step, twice, and the same command after each."""
    folder = undisturbed.parent / "killed"
    draw = random.Random()
    for attempt, (earliest, latest) in enumerate(((1, 28), (30, 57))):
        step = draw.randint(earliest, latest)
        process = launches.start(2, folder, *corpus.overrides, *OPTIONS)
        launches.wait_for_step(process, folder, step)
        draw.choice(launches.workers(process)).kill()
        assert process.wait(120) != 0, f"attempt {attempt}"
        print(f"killed one rank after step {step}")
    launches.finish(launches.start(2, folder, *corpus.overrides, *OPTIONS, cold=True), folder)
    launches.assert_same_run(undisturbed, folder, STEPS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_one_rank_saves_and_exits_with_75(corpus, undisturbed, number):
    folder = undisturbed.parent / number.name
    options = OPTIONS if number is signal.SIGTERM else ALONE
    process = launches.start(2, folder, *corpus.overrides, *options)
    launches.wait_for_step(process, folder, 13)
    launches.workers(process)[1].send_signal(number)
    launches.finish(process, folder, expect=1)  # torchrun's own code for any that is not 0
    status = RunDir(folder).read_status()
    assert (status.state, status.exit_code) == ("stopped", 75)
    assert f"exitcode  : {75}" in launches.tail(folder)
    assert f"stopping after step {status.step}: received {number.name}" in launches.tail(folder)
    assert (RunDir(folder).checkpoints / f"step_{status.step:08d}").is_dir()
    if number is signal.SIGINT:
        launches.finish(launches.start(2, folder, *corpus.overrides, *options), folder)
        assert (
            f"from step {status.step} (step_{status.step:08d}); configuration unchanged"
            in (folder / "console.log").read_text()
        )
        launches.assert_same_run(undisturbed, folder, STEPS)


@pytest.mark.timeout(300)
def test_files_stop_and_save(corpus, undisturbed):
    folder = undisturbed.parent / "files"
    process = launches.start(2, folder, *corpus.overrides, *ALONE)
    launches.wait_for_step(process, folder, 3)
    RunDir(folder).save.touch()
    launches.wait_for_step(process, folder, 22)
    RunDir(folder).stop.touch()
    launches.finish(process, folder, expect=1)
    saved = [json.loads(line) for line in RunDir(folder).events.read_text().splitlines()]
    steps = [event["step"] for event in saved if event["kind"] == "checkpoint"]
    assert [step for step in steps if step < 10], "SAVE saved between the regular checkpoints"
    assert RunDir(folder).read_status().step == steps[-1] >= 22
    assert not RunDir(folder).stop.exists() and not RunDir(folder).save.exists()


@pytest.mark.timeout(300)
def test_a_finished_run_says_so_and_can_go_on(corpus, undisturbed):
    process = launches.start(2, undisturbed, *corpus.overrides, *OPTIONS)
    launches.finish(process, undisturbed)
    text = launches.tail(undisturbed)
    assert "is finished: 60 steps" in text and "train.steps=120" in text
    assert launches.last_step(undisturbed) == STEPS


@pytest.mark.timeout(300)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(corpus, undisturbed):
    folder = undisturbed.parent / "damaged"
    short = ["train.steps=20", *ALONE[1:]]
    launches.finish(launches.start(2, folder, *corpus.overrides, *short), folder)
    data = next((RunDir(folder).checkpoints / "step_00000020").glob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    launches.finish(launches.start(2, folder, *corpus.overrides, *short), folder)
    text = (folder / "console.log").read_text()
    assert "checkpoint skipped: " in text and "step_00000020" in text
    assert "from step 10 (step_00000010)" in text
    assert launches.last_step(folder) == 20


@pytest.mark.timeout(300)
def test_another_model_is_refused_by_name(corpus, undisturbed):
    process = launches.start(2, undisturbed, *corpus.overrides, *OPTIONS, "model.heads=2")
    launches.finish(process, undisturbed, expect=1)
    text = launches.tail(undisturbed)
    assert "belongs to another model" in text and "model.heads: checkpoint 3, this run 2" in text
    assert 'Traceback (most recent call last):\n  File "' + str(launches.ROOT / "launch") not in text
