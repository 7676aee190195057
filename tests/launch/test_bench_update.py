"""launch/bench.py update: what is timed beside growth scores computes none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.parallel.blocks import block_modules
from nt_pretrain.parallel.mesh import Ranks, connect
from tests.gloo import run_ranks

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def left_on(rank: int, world: int, launch: str) -> tuple[int, int]:
    """Layers of blocks, and those whose scoring is on after gradients with scores were timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(launch)
        from bench_step import Shape, models_of, our_config
        from bench_update import Parts

        shape = Shape(32, 64, 2, 2, 1, 96, density=0.5, scope="head_blocks", unit=16, batch=(2, 8))
        ranks: Ranks = connect(our_config(shape, "fp32", heads=1, sparsity=SparsitySection()))
        model = models_of(shape, "fp32", ranks, torch.arange(18).view(2, 9))["block 16 M=3"]
        parts = Parts(model)
        parts.gradients_with_scores()
        modules = block_modules(model.state.model).values()
        found = len(modules), sum(module.scoring is not None for module in modules)
        before = model.state.digest(ranks)
        parts.move()
        assert model.state.digest(ranks) != before, "the scores were there all the same"
        return found


@pytest.mark.timeout(120)
def test_scoring_ends_with_the_gradients_it_was_timed_with() -> None:
    [(layers, scoring)] = run_ranks(left_on, 1, str(LAUNCH), timeout=100)
    assert layers == 21
    assert scoring == 0
