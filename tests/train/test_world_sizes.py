"""Whole runs at 1, 2 and 4 ranks with parallel.deterministic_reduce are bit-identical, from data to weights."""

import pytest

from tests.train import launches

OPTIONS = [
    "train.steps=20",
    "train.micro_batch=2",
    "sparsity.update_every=6",
    "checkpoint.save_every_steps=0",
    "eval.every_steps=0",
    "observe.log_every_steps=1",
    "parallel.deterministic_reduce=true",
]


@pytest.mark.timeout(400)
def test_bit_identical_at_1_2_and_4_ranks(corpus, tmp_path):
    for ranks in (1, 2, 4):
        folder = tmp_path / f"ranks{ranks}"
        launches.finish(launches.start(ranks, folder, *corpus.overrides, *OPTIONS), folder)
        launches.assert_same_run(tmp_path / "ranks1", folder, 20)


@pytest.mark.timeout(400)
def test_resume_at_another_world_size_goes_on_bit_identically(corpus, tmp_path):
    """10 steps on 2 ranks, the rest on 4, against 20 steps on one."""
    whole, elastic = tmp_path / "whole", tmp_path / "elastic"
    launches.finish(launches.start(1, whole, *corpus.overrides, *OPTIONS), whole)
    process = launches.start(2, elastic, *corpus.overrides, *OPTIONS, "checkpoint.save_every_steps=10")
    launches.wait_for_step(process, elastic, 12)
    launches.kill_tree(process)
    launches.finish(launches.start(4, elastic, *corpus.overrides, *OPTIONS), elastic)
    launches.assert_same_run(whole, elastic, 20)
