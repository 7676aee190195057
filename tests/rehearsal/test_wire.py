"""Bytes on the wire of a step shrink with the density where only active blocks exist, and not where zeros are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.rehearsal.watch import Sent, Watch
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients
from tests.gloo import run_ranks

WORLD = 2
DENSITIES = (0.5, 0.2, 0.1)


def small(density: float, backend: str) -> Config:
    lines: dict[str, Any] = {"unit": 16, "balance": "line", "backend": backend}
    return Config.model_validate(
        {
            "model": dict(
                vocab_size=640, hidden=192, intermediate=512, layers=3, attention_heads=4, heads=2, blocks_in_head=2
            ),
            "sparsity": {"density": density} | (lines if density < 1 else {}),
            "train": {"global_batch": 4, "micro_batch": 2},
            "data": {"sequence_length": 16},
        }
    )


def steps(rank: int, world: int, configs: list[Config]) -> list[tuple[Sent, float]]:
    """What the gradients of a step send, and the share of the model's weights that has to travel."""
    found = []
    for config in configs:
        ranks = connect(config)
        state = fresh_state(config, ranks)
        tokens = torch.zeros(config.train.global_batch // world, config.data.sequence_length + 1, dtype=torch.int64)
        with Watch() as watch:
            accumulate_gradients(state.model, config, Inputs.of_text(tokens, torch.zeros_like(tokens)), ranks)
        shapes = {name: torch.Size(shape).numel() for name, shape in shapes_of(config.model).items()}
        active = sum(budget.active * budget.unit**2 - shapes[name] for name, budget in state.budgets.items())
        sent = sum((each for name, each in watch.traffic.items()), Sent())
        found.append((sent, 1 + active / sum(shapes.values())))
    return found


@pytest.mark.timeout(180)
def test_bytes_of_a_step_shrink_with_the_density_of_blocks_alone() -> None:
    backends = ("masked", "block")
    configs = [small(1.0, "masked"), *(small(density, backend) for density in DENSITIES for backend in backends)]
    for found in run_ranks(steps, WORLD, configs, timeout=150):
        dense, *sparse = found
        masked, blocks = sparse[::2], sparse[1::2]
        assert {sent for sent, _ in masked} == {dense[0]}, "zeros travel like other weights"
        for (sent, share), density in zip(blocks, DENSITIES, strict=True):
            assert sent.bytes == pytest.approx(share * dense[0].bytes, rel=0.01)
            assert share == pytest.approx(density, abs=0.02)
            assert sent.calls == dense[0].calls, "in as many messages"
