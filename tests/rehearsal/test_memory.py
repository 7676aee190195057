"""What the rehearsal counts without values is what a real run allocates."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.eval.validate import validate
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.rehearsal.step import rehearse
from nt_pretrain.train.change import change_topology
from nt_pretrain.train.plan import make_plan
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks

M_MMAP_THRESHOLD = -3
LIBRARIES = 6_000_000


def small(**sections: dict[str, Any]) -> Config:
    """Some ten million parameters, so that tensors outweigh everything else."""
    model = dict(vocab_size=2048, hidden=256, intermediate=640, layers=4, attention_heads=4, heads=2, blocks_in_head=2)
    whole: dict[str, Any] = {
        "model": model,
        "sparsity": {"density": 0.5},
        "train": {"global_batch": 16, "micro_batch": 4, "loss_chunk": 256},
        "data": {"sequence_length": 128},
        "checkpoint": {"asynchronous": False},
        "eval": {"micro_batch": 4},
    }
    return Config.model_validate({name: whole.get(name, {}) | sections.get(name, {}) for name in {*whole, *sections}})


def measure(rank: int, world: int, config: Config) -> dict[str, int]:
    """Peak of resident memory in each phase of the second step, beyond what the process needs for a tiny model."""
    # Every tensor of more than a page or two gets pages of its own, which go back when it is freed.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 14)
    tiny = dict(vocab_size=128, hidden=128, intermediate=128, attention_heads=4)
    train(rank, config.model_copy(update={"model": config.model.model_copy(update=tiny)}))
    gc.collect()
    before = resident("VmRSS")
    return {phase: peak - before for phase, peak in train(rank, config).items()}


def train(rank: int, config: Config) -> dict[str, int]:
    """Peak of resident memory in each phase of the second of two steps."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    sequences = config.train.global_batch // ranks.sizes.data
    shape = (sequences, config.data.sequence_length + 1)
    tokens = torch.randint(0, config.model.vocab_size, shape, generator=torch.Generator().manual_seed(rank))
    documents = torch.zeros_like(tokens)
    peaks = {}
    for step in (1, 2):
        forget_peak()
        accumulate_gradients(state.model, config, Inputs.of_text(tokens, documents), ranks)
        peaks["step"] = resident("VmHWM")
        scores = None
        if state.blocks:
            apply_gradients(state.optimizer, state.layers, config, ranks, 1e-3)
            scores = GrowthScores(config, ranks)
            scores.listen(state.model, on=True)
            forget_peak()
            accumulate_gradients(state.model, config, Inputs.of_text(tokens, documents), ranks, scores)
            peaks["growing"] = resident("VmHWM")
        forget_peak()
        change_topology(state, config, ranks, step, scores)
        peaks["update"] = resident("VmHWM")
        apply_gradients(state.optimizer, state.layers, config, ranks, 1e-3)
    batch = tokens[: config.eval.micro_batch], documents[: config.eval.micro_batch]
    forget_peak()
    validate(state.model, config, [Inputs.of_text(*batch)], ranks)
    return peaks | {"validation": resident("VmHWM")}


def resident(what: str) -> int:
    """Bytes: VmRSS now, VmHWM the most since :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


ONLY_BLOCKS = {"density": 0.3, "unit": 32, "backend": "block", "balance": "line"}
MESHES: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "shard": (2, {"train": {"global_batch": 8}}),
    "accumulation": (2, {}),
    "tensor": (2, {"parallel": {"tensor": 2}}),
    "head": (2, {"parallel": {"head": 2}}),
    "block": (2, {"sparsity": {"density": 0.5, "unit": 16}}),
    "recomputed": (2, {"parallel": {"activation_checkpoint": "full"}}),
    "only blocks": (2, {"sparsity": ONLY_BLOCKS, "train": {"global_batch": 8}}),
    "only blocks, accumulation": (2, {"sparsity": ONLY_BLOCKS}),
    "only blocks, tensor": (2, {"sparsity": ONLY_BLOCKS, "parallel": {"tensor": 2}}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("shard", "only blocks") else [pytest.mark.long]) for name in MESHES],
)
def test_a_real_run_takes_what_was_rehearsed(name: str) -> None:
    """Within a tenth, as resident memory; or within the six megabytes that libraries keep where a phase is short."""
    world, sections = MESHES[name]
    config = small(**sections)
    memory = rehearse(config, world).memory
    for real in run_ranks(measure, world, config, timeout=120):
        assert real["step"] == pytest.approx(memory.step, rel=0.1)
        if "growing" in real:
            assert real["growing"] == pytest.approx(memory.growing_step, rel=0.1)
            # The plan's estimate, which is made from formulas alone: on the safe side.
            assert 0.97 * real["growing"] < make_plan(config, world).memory.peak < 1.1 * real["growing"]
        updating = memory.stored + memory.gradients + memory.update
        assert real["update"] == pytest.approx(updating, rel=0.1, abs=LIBRARIES)
        assert real["validation"] == pytest.approx(memory.stored + memory.validation, rel=0.1, abs=LIBRARIES)
    assert memory.peak >= memory.step


def test_parts_add_up_to_known_sizes() -> None:
    config = small(train={"global_batch": 32})
    parameters = sum(torch.Size(shape).numel() for shape in shapes_of(config.model).values())
    one, four = rehearse(config, 1).memory, rehearse(config, 4).memory
    assert one.weights == pytest.approx(4 * parameters, rel=0.001)
    assert one.moments == pytest.approx(8 * parameters, rel=0.001)
    assert one.gradients == one.kept == pytest.approx(4 * parameters, rel=0.001), "nothing is sharded"
    assert four.weights == pytest.approx(parameters, rel=0.001)
    assert four.gradients == pytest.approx(parameters, rel=0.001)
    assert four.kept == pytest.approx(4 * parameters, rel=0.001), "whole, until the last micro-batch"


def test_one_moment_of_sgd_and_the_average_are_counted() -> None:
    config = small(optim={"algorithm": "sgd"}, train={"global_batch": 32, "ema_decay": 0.99})
    parameters = sum(torch.Size(shape).numel() for shape in shapes_of(config.model).values())
    memory, estimate = rehearse(config, 1).memory, make_plan(config, 1).memory
    assert memory.moments == estimate.moments == 4 * parameters
    assert memory.average == estimate.average == 4 * parameters
    assert memory.stored == memory.weights + memory.moments + memory.average + memory.topology
