"""Options that save memory or time change no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nt_pretrain.rehearsal.step import rehearse
from tests.gloo import run_ranks
from tests.train.test_meshes import config_of, far, train

pytestmark = pytest.mark.long

EXACT: dict[str, dict[str, Any]] = {
    "selective": {"activation_checkpoint": "selective"},
    "full": {"activation_checkpoint": "full"},
    "prefetch": {"prefetch": 2},
    "kept whole": {"reshard_after_forward": False},
    "offload": {"cpu_offload": True},
}
DEEP = {"layers": 5, "blocks_in_head": 2, "heads": 2}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_bit_for_bit(options: dict[str, Any]) -> None:
    plain = run_ranks(train, 2, config_of("weights", {}, precision="fp32", model=DEEP), timeout=120)[0]
    found = run_ranks(train, 2, config_of("weights", options, precision="fp32", model=DEEP), timeout=120)[0]
    assert (found.losses, found.norms, found.digests) == (plain.losses, plain.norms, plain.digests)
    assert all(torch.equal(found.weights[name], w) for name, w in plain.weights.items())


@pytest.mark.timeout(200)
@pytest.mark.parametrize("what", ["selective", "full"])
def test_recomputation_on_tensor_ranks(what: str) -> None:
    plain = run_ranks(train, 2, config_of("weights", {"tensor": 2}), timeout=120)[0]
    found = run_ranks(train, 2, config_of("weights", {"tensor": 2, "activation_checkpoint": what}), timeout=120)[0]
    assert (found.losses, found.norms, found.digests) == (plain.losses, plain.norms, plain.digests)


def test_recomputation_saves_memory() -> None:
    """Counted in a step without values, which tests/rehearsal holds against real runs."""
    model = {"layers": 12, "blocks_in_head": 2, "heads": 2, "hidden": 64, "intermediate": 256, "attention_heads": 4}
    most = {
        what: rehearse(config_of("weights", {"activation_checkpoint": what}, model=model), 1).memory.working
        for what in ("none", "selective", "full")
    }
    assert most["full"] < 0.5 * most["selective"] < 0.25 * most["none"]


@pytest.mark.timeout(600)
def test_compiled_blocks_compute_the_same() -> None:
    model = {"layers": 2, "blocks_in_head": 1, "heads": 2}
    plain = run_ranks(train, 1, config_of("weights", {}, precision="fp32", model=model), timeout=120)[0]
    compiled = config_of("weights", {"compile": True}, precision="fp32", model=model)
    found = run_ranks(train, 1, compiled, timeout=500)[0]
    assert far(found.norms[:6], plain.norms[:6]) < 1e-5, "gradients"
    assert far(found.losses[:6], plain.losses[:6]) < 1e-5
