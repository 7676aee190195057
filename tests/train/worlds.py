"""A small training run on real ranks without files, for tests of what must not depend on the number of ranks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from nt_pretrain.config.schema import Config, ModelSection, OptimSection, ParallelSection, SparsitySection, TrainSection
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.sparsity.schedule import is_update_step
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients

STEPS, SEQUENCES, LENGTH = 9, 8, 24


@dataclass
class Trace:
    """What a run did: hexadecimal losses, norms and topology digests of each step, weights before and after."""

    losses: list[list[str]]
    norms: list[str]
    digests: list[str]
    first_weights: str
    first_topology: str
    weights: str
    average: str
    values: list[float]


def tiny(*, deterministic: bool = True, steps: int = STEPS, **sections: dict[str, Any]) -> Config:
    model = dict(vocab_size=160, hidden=64, intermediate=96, layers=3, attention_heads=4, heads=3, blocks_in_head=1)
    sparsity = dict(density=0.5, update_every=3, prune_rate=0.3)
    return Config(
        model=ModelSection(**model | sections.get("model", {})),
        sparsity=SparsitySection(**sparsity | sections.get("sparsity", {})),
        train=TrainSection(**dict(steps=steps, global_batch=SEQUENCES, micro_batch=2) | sections.get("train", {})),
        optim=OptimSection(**dict(lr=1e-2, clip=0.3) | sections.get("optim", {})),
        parallel=ParallelSection(deterministic_reduce=deterministic),
    )


def hash_of(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        digest.update(whole.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sequences(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a step: tokens and documents [S, T + 1], some padded; the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 160, (SEQUENCES, LENGTH + 1), generator=generator)
    documents = torch.zeros_like(tokens)
    documents[3, 15:] = -1
    return tokens, documents


def change(state: TrainState, config: Config, ranks: Ranks, step: int) -> None:
    """A topology update of masked layers."""
    change_topology(state, config, ranks, step, None)


def train_rank(rank: int, world: int, config: Config) -> Trace:
    """Train ``config`` for its steps; every rank returns the same trace."""
    ranks = connect(config)
    state = fresh_state(config, ranks)
    first = hash_of(list(state.parameters.values())), state.digest(ranks)
    losses, norms, digests, values = [], [], [], []
    for step in range(1, config.total_steps + 1):
        tokens, documents = sequences(step)
        mine = slice(rank * SEQUENCES // world, (rank + 1) * SEQUENCES // world)
        scores = growth_scores(state, config, ranks, step)
        found = accumulate_gradients(state.model, config, Inputs.of_text(tokens[mine], documents[mine]), ranks, scores)
        if is_update_step(config, step):
            change_topology(state, config, ranks, step, scores)
        norm = apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr)
        if state.average is not None:
            state.average.update()
        losses.append([loss.hex() for loss in found.per_head])
        values.append(sum(found.per_head))
        norms.append(norm.hex())
        digests.append(state.digest(ranks))
    last = hash_of(list(state.parameters.values())), hash_of(averages(state))
    return Trace(losses, norms, digests, *first, *last, values)


def averages(state: TrainState) -> list[torch.Tensor]:
    return [tensor for name, tensor in state.checkpoint_tensors().items() if name.startswith("ema.")]
