"""Whole runs at 1, 2 and 4 ranks with parallel.deterministic_reduce are bit-identical, from data to weights."""

import os

import pytest
import torch

from tests import warm
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


SGD = ["optim.algorithm=sgd", "optim.lr=0.1", "train.ema_decay=0.9"]
BLOCKS = ["sparsity.backend=block", "sparsity.balance=line", "sparsity.unit=16"]
"""Only active blocks exist: on 4 ranks some hold no line of a layer, which has 2 or 4."""

SINGLE = ["sparsity.backend=block", "sparsity.unit=1"]
"""Only active weights exist, each by itself."""

ALONE = [*OPTIONS, "data.workers=0"]
"""Ranks that read themselves, as they do where there are four: fewer processes, the same samples."""


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """20 steps on one rank."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    launches.finish(launches.start(1, folder, *corpus.overrides, *ALONE), folder)
    return folder


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("ranks", "options"), [(2, OPTIONS), (4, ALONE)], ids=["2", "4"])
def test_bit_identical_to_one_rank(corpus, whole, ranks, options):
    folder = whole.parent / f"ranks{ranks}"
    launches.finish(launches.start(ranks, folder, *corpus.overrides, *options), folder)
    launches.assert_same_run(whole, folder, 20)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "recipe", [[], SGD, [*SGD, *BLOCKS], [*SGD, *SINGLE]], ids=["adamw", "sgd", "blocks", "single"]
)
def test_resume_at_another_world_size_goes_on_bit_identically(corpus, whole, tmp_path, recipe):
    """10 steps on 2 ranks, the rest on 4, against 20 steps on one."""
    elastic = tmp_path / "elastic"
    if recipe:
        whole = tmp_path / "whole"
        launches.finish(launches.start(1, whole, *corpus.overrides, *ALONE, *recipe), whole)
    process = launches.start(2, elastic, *corpus.overrides, *OPTIONS, *recipe, "checkpoint.save_every_steps=10")
    launches.wait_for_step(process, elastic, 12)
    launches.kill_tree(process)
    launches.finish(launches.start(4, elastic, *corpus.overrides, *ALONE, *recipe), elastic)
    launches.assert_same_run(whole, elastic, 20)
    if recipe and recipe[-1] == BLOCKS[-1]:
        words = ["launch/evaluate.py", str(elastic)]
        done = warm.run(words, cwd=launches.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200)
        assert done.returncode == 0 and "ensemble" in done.stdout, done.stdout + done.stderr
    saved = launches.final_tensors(elastic, 20)
    averages = {name: tensor for name, tensor in saved.items() if name.startswith("ema.")}
    assert len(averages) == (sum(name.startswith("model.") for name in saved) if recipe else 0)
    assert not any(torch.equal(tensor, saved[name.replace("ema.", "model.", 1)]) for name, tensor in averages.items())
