"""What the rehearsal says is sent is what real ranks send, and what formulas say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.groups import part_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.rehearsal.step import rehearse
from nt_pretrain.rehearsal.traffic import by_axis
from nt_pretrain.rehearsal.watch import Sent, Watch
from nt_pretrain.train.change import change_topology
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import micro_batch_backward, set_last_micro_batch
from tests.gloo import run_ranks


def tiny(**sections: dict[str, Any]) -> Config:
    whole: dict[str, Any] = {
        "model": dict(
            vocab_size=160, hidden=64, intermediate=96, layers=3, attention_heads=4, heads=2, blocks_in_head=1
        ),
        "sparsity": {"density": 0.5, "prune_rate": 0.3},
        "train": {"global_batch": 8, "micro_batch": 2},
        "data": {"sequence_length": 16},
    }
    return Config.model_validate({name: whole.get(name, {}) | sections.get(name, {}) for name in {*whole, *sections}})


def watched(rank: int, world: int, config: Config) -> tuple[dict[str, Sent], int, int]:
    """Traffic of one step by axis; bytes and collectives of one topology update."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    micro, length = config.train.micro_batch, config.data.sequence_length
    tokens = torch.randint(0, config.model.vocab_size, (micro, length), generator=torch.Generator().manual_seed(rank))
    parts = config.train.global_batch // ranks.sizes.data // micro
    scores = GrowthScores(config, ranks) if state.blocks and config.sparsity.grow != "random" else None

    def gradients() -> None:
        for part in range(parts):
            last = part == parts - 1
            set_last_micro_batch(state.model, last)
            if scores is not None:
                scores.last = last
            micro_batch_backward(
                state.model, config, Inputs(tokens, tokens, torch.zeros_like(tokens)), 1.0, ranks.head_group
            )

    with Watch() as step:
        gradients()
    with Watch() as update:
        if scores is not None:
            scores.listen(state.model, on=True)
            gradients()
        change_topology(state, config, ranks, 1, scores)
        state.digest(ranks)
    sums = sum(update.traffic.values(), Sent())
    if scores is not None:
        sums += sum(step.traffic.values(), Sent()) * -1
    return by_axis(step.traffic, ranks), sums.bytes, sums.calls


ONLY_BLOCKS = {"unit": 16, "backend": "block", "balance": "line"}
MESHES: dict[str, tuple[int, dict[str, Any]]] = {
    "shard": (2, {}),
    "accumulation": (2, {"global_batch": 16}),
    "replicate": (4, {"replicate": 2}),
    "tensor": (4, {"tensor": 2}),
    "head": (4, {"head": 2}),
    "blocks": (2, {"unit": 16}),
    "recomputed": (2, {"activation_checkpoint": "full"}),
    "only blocks": (2, ONLY_BLOCKS),
    "only blocks, accumulation": (3, ONLY_BLOCKS | {"global_batch": 12}),
    "only blocks, replicate": (4, ONLY_BLOCKS | {"replicate": 2}),
    "only blocks, tensor": (4, ONLY_BLOCKS | {"tensor": 2}),
    "only blocks, head": (4, ONLY_BLOCKS | {"head": 2}),
    "only blocks, random": (2, ONLY_BLOCKS | {"grow": "random"}),
}

SECTIONS = {"global_batch": "train"} | dict.fromkeys(("unit", "backend", "balance", "grow"), "sparsity")


@pytest.mark.parametrize("name", MESHES)
def test_real_ranks_send_what_was_rehearsed(name: str) -> None:
    world, options = MESHES[name]
    sections: dict[str, dict[str, Any]] = {"train": {}, "sparsity": {}, "parallel": {}}
    for key, value in options.items():
        sections[SECTIONS.get(key, "parallel")][key] = value
    config = tiny(**sections)
    rehearsed = rehearse(config, world)
    for step, update, calls in run_ranks(watched, world, config, timeout=120):
        assert step == rehearsed.traffic
        assert 0 < update <= rehearsed.update.bytes
        assert 0 < calls <= rehearsed.update.calls


def test_weights_are_gathered_twice_and_gradients_reduced_once() -> None:
    """The formula of fully sharded training: 2 x (n - 1) / n of the blocks and 1 x of the rest, and 1 x gradients."""
    config, world = tiny(), 4
    shapes = {name: torch.Size(shape).numel() for name, shape in shapes_of(config.model).items()}
    blocks = sum(count for name, count in shapes.items() if ".blocks." in name)
    everything = sum(shapes.values())
    rest = everything - blocks
    sent = rehearse(config, world).traffic["shard"].bytes
    expected = (world - 1) / world * 4 * (2 * blocks + rest + everything)
    assert sent == pytest.approx(expected, rel=0.01), "padding aside"


def test_heads_alone_are_sent_less_under_head_parallelism() -> None:
    """docs/DISTRIBUTED.md: heads travel in their group only, hidden states and their gradients along head."""
    plain, split = (rehearse(tiny(train={"global_batch": 16}, parallel={"head": h}), 8) for h in (1, 2))
    hidden = 2 * 16 * 64 * 4  # micro-batch x length x hidden x fp32
    documents = 2 * 2 * 16 * 8  # targets and documents, int64
    assert split.traffic["head"].bytes == 2 * hidden + documents
    shapes = {name: torch.Size(shape).numel() for name, shape in shapes_of(tiny().model).items()}
    heads = sum(count for name, count in shapes.items() if part_of(name) != "trunk")
    of_split = split.traffic["shard"].bytes + split.traffic["shard of heads"].bytes
    assert plain.traffic["shard"].bytes - of_split > 4 * heads


def test_an_axis_of_one_rank_sends_nothing() -> None:
    assert rehearse(tiny(), 1).traffic == {}
    assert set(rehearse(tiny(parallel={"tensor": 2}), 2).traffic) == {"tensor"}
