"""What the estimate says of layers of blocks against the tensors that a run really holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.blocks import block_modules
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.shard import local
from nt_pretrain.rehearsal.blocks import topology_bytes
from nt_pretrain.train.memory import checkpoint_bytes
from nt_pretrain.train.plan import make_plan
from nt_pretrain.train.state import budgets_at, fresh_state
from nt_pretrain.train.step import accumulate_gradients
from tests.gloo import run_ranks

LINES = {"density": 0.4, "unit": 16, "backend": "block", "balance": "line"}


def config(**sections: dict[str, Any]) -> Config:
    model = dict(vocab_size=160, hidden=64, intermediate=96, layers=3, attention_heads=4, heads=2, blocks_in_head=1)
    whole: dict[str, Any] = {
        "model": model,
        "sparsity": LINES,
        "train": {"global_batch": 12, "micro_batch": 1},
        "data": {"sequence_length": 16},
    }
    return Config.model_validate({name: whole.get(name, {}) | sections.get(name, {}) for name in {*whole, *sections}})


def size(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(rank: int, world: int, found: Config) -> dict[str, int]:
    """Bytes of the tensors of this rank, by what they are; those of a checkpoint also over all ranks."""
    ranks = connect(found)
    state = fresh_state(found, ranks)
    samples = found.train.global_batch // ranks.sizes.data
    tokens = torch.zeros(samples, found.data.sequence_length + 1, dtype=torch.int64)
    accumulate_gradients(state.model, found, Inputs.of_text(tokens, torch.zeros_like(tokens)), ranks)
    moments = [moment for name in state.parameters for moment in state.optimizer.moments(name).values()]
    modules = block_modules(state.model).values()
    saved = state.checkpoint_tensors()
    return {
        "weights": size(list(state.optimizer.shards.values())),
        "gradients": size(list(state.optimizer.gradients().values())),
        "moments": size(moments),
        "average": size(list(state.average.values.values())) if state.average is not None else 0,
        "topology": sum(
            topology_bytes(module.topology) + module.layout.bytes
            for module in modules
            if module.topology is not None and module.layout is not None
        ),
        "snapshot": size([local(tensor) for tensor in saved.values()]),
        "checkpoint": size(list(saved.values())),
    }


MESHES: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"train": {"ema_decay": 0.9}}),
    "lines that three ranks do not divide": (3, {}),
    "fp64, a copy": (2, {"train": {"precision": "fp64"}, "parallel": {"replicate": 2}}),
    "tensor": (4, {"parallel": {"tensor": 2}}),
    "head": (2, {"parallel": {"head": 2}}),
}


@pytest.mark.parametrize("name", MESHES)
def test_what_is_stored_is_the_tensors_of_the_first_rank(name: str) -> None:
    world, sections = MESHES[name]
    found = config(**sections)
    memory = make_plan(found, world).memory
    first, *others = run_ranks(held, world, found, timeout=120)
    estimated = {what: getattr(memory, what) for what in ("weights", "moments", "average", "topology", "snapshot")}
    assert estimated == {what: first[what] for what in estimated}
    assert first["gradients"] == first["weights"]
    for other in others:
        assert all(other[what] <= first[what] for what in estimated), "the first holds the most"
    if found.parallel.head == 1:
        budgets = budgets_at(found, shapes_of(found.model), 0)
        assert checkpoint_bytes(found, shapes_of(found.model), budgets) == first["checkpoint"]


def test_a_head_of_llama350m_takes_density_times_dense_of_weights_gradients_and_moments() -> None:
    """A block of the shapes of configs/llama350m.yaml, with a smaller vocabulary: real tensors."""
    model = dict(
        vocab_size=2048, hidden=1024, intermediate=2752, attention_heads=16, layers=1, heads=1, blocks_in_head=1
    )
    kept, batch = {"density": 0.2, "unit": 64}, {"train": {"global_batch": 1}}
    dense, block = (
        run_ranks(held, 1, config(model=model, sparsity=sparsity, **batch), timeout=120)[0]
        for sparsity in ({"density": 1.0, "backend": "masked"}, kept)
    )
    taken = [sum(found[what] for what in ("weights", "gradients", "moments")) for found in (dense, block)]
    assert taken[1] == pytest.approx(0.2 * taken[0], rel=0.05)
    # Where blocks are is an eighth of a percent of that.
    assert taken[1] + block["topology"] == pytest.approx(0.2 * taken[0], rel=0.05)
    assert block["topology"] < 0.005 * taken[1]
