"""An optimizer step of our models, of the plain one and of transformers': the verb `step` of launch/bench.py."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_timing import measure, ratio
from torch import nn

from nt_pretrain.config.schema import (
    Config,
    ModelSection,
    OptimSection,
    RunSection,
    SparsitySection,
    TrainSection,
)
from nt_pretrain.models.accounting import account, shapes_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients

EVERY = 100
"""Steps between topology updates, both of the timed runs and of the shares that are told."""


@dataclass(frozen=True)
class Shape:
    """A model to time.

    Attributes:
        blocks: in each of three heads; as many as ``layers``: heads without a trunk.
        density: of the sparse ensemble.
        scope: its sparse layers.
        unit: of blocks that are timed beside the masked model; 0: none.
        batch: sequences and tokens of each.
    """

    hidden: int
    intermediate: int
    layers: int
    attention_heads: int
    blocks: int
    vocabulary: int = 32_000
    density: float = 0.9
    scope: str = "all"
    unit: int = 0
    batch: tuple[int, int] = (4, 256)


SHAPES = {
    # NeuroTrails, arXiv 2505.17909, code
    "9m": Shape(128, 352, 4, 4, 2),
    "20m": Shape(256, 688, 4, 4, 2),
    "60m": Shape(512, 1376, 8, 8, 5),
    # configs/llama60m_sparse.yaml
    "60m_sparse": Shape(512, 1408, 8, 8, 5, density=0.2, scope="head_blocks", unit=64),
    # Two blocks of llama350m for each head and nothing else: hardly any vocabulary, no trunk that all models share.
    "350m_heads": Shape(1024, 2752, 2, 16, 2, 512, density=0.2, scope="no_vocab", unit=64, batch=(1, 512)),
}


def our_config(shape: Shape, precision: str, *, heads: int, sparsity: SparsitySection) -> Config:
    sequences, _ = shape.batch
    return Config(
        run=RunSection(device="cpu", threads_per_rank=torch.get_num_threads()),
        model=ModelSection(
            vocab_size=shape.vocabulary, hidden=shape.hidden, intermediate=shape.intermediate, layers=shape.layers,
            attention_heads=shape.attention_heads, heads=heads, blocks_in_head=shape.blocks if heads > 1 else 0,
        ),
        sparsity=sparsity,
        train=TrainSection(global_batch=sequences, micro_batch=sequences, precision=precision),
        optim=OptimSection(clip=1.0),
    )  # fmt: skip


class Ours:
    """One of our models with everything a step needs."""

    def __init__(self, config: Config, ranks: Ranks, tokens: torch.Tensor) -> None:
        self.config, self.ranks, self.tokens = config, ranks, tokens
        self.documents = torch.zeros_like(tokens)
        self.state: TrainState = fresh_state(config, ranks)

    def step(self) -> None:
        self.gradients(0)
        self._apply()

    def update_step(self) -> None:
        """A step that also updates the topology: growth scores, drop and grow."""
        scores = self.gradients(EVERY)
        change_topology(self.state, self.config, self.ranks, EVERY, scores)
        self._apply()

    def state_bytes(self) -> int:
        """Of weights, gradients and moments."""
        moments = [m for name in self.state.parameters for m in self.state.optimizer.moments(name).values()]
        weights = list(self.state.parameters.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in [*weights, *weights, *moments])

    def gradients(self, step: int) -> GrowthScores | None:
        """Of ``step``; with what growth asks of them where topologies are updated then."""
        scores = growth_scores(self.state, self.config, self.ranks, step) if step else None
        batch = Inputs.of_text(self.tokens, self.documents)
        accumulate_gradients(self.state.model, self.config, batch, self.ranks, scores)
        return scores

    def _apply(self) -> None:
        apply_gradients(self.state.optimizer, self.state.layers, self.config, self.ranks, 1e-3)


def peer_step(shape: Shape, precision: str, tokens: torch.Tensor) -> Callable[[], None] | None:
    """A training step of transformers' LlamaForCausalLM of the same shape; None if transformers is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    peer: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.attention_heads, tie_word_embeddings=False,
            use_cache=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, fused=True)
    inputs = tokens[:, :-1].long()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = peer(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def models_of(shape: Shape, precision: str, ranks: Ranks, tokens: torch.Tensor) -> dict[str, Ours]:
    """Our models to time, by name."""
    dense = SparsitySection()
    sparse = {"density": shape.density, "scope": shape.scope, "update_every": EVERY}
    backends = {"masked M=3": SparsitySection(**sparse)}
    if shape.unit:
        # Densities of blocks are those of whole numbers in every line; uniform: none of the layers is dense.
        lines = sparse | {"unit": shape.unit, "balance": "line", "distribution": "uniform"}
        backends = {
            "masked M=3": SparsitySection(**lines),
            f"block {shape.unit} M=3": SparsitySection(**lines, backend="block"),
            # At the density asked for, wherever weights are best: what the papers have.
            "single M=3": SparsitySection(**sparse, distribution="uniform", backend="block"),
        }
    configs = {name: our_config(shape, precision, heads=3, sparsity=each) for name, each in backends.items()}
    configs["dense M=3"] = our_config(shape, precision, heads=3, sparsity=dense)
    configs["dense M=1"] = our_config(shape, precision, heads=1, sparsity=dense)
    return {name: Ours(config, ranks, tokens) for name, config in configs.items()}


def bench_step(model: str, precision: str, repeats: int) -> dict[str, object]:
    """Run all variants and print the table; returns it for JSON."""
    shape = SHAPES[model]
    ranks = connect(our_config(shape, precision, heads=1, sparsity=SparsitySection()))
    sequences, length = shape.batch
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.vocabulary, (sequences, length + 1), generator=generator)
    models = models_of(shape, precision, ranks, tokens)
    variants = {name: each.step for name, each in models.items()}
    sparse = [name for name in models if not name.startswith("dense")]
    variants |= {f"{name}, update": models[name].update_step for name in sparse}
    peer = peer_step(shape, precision, tokens)
    if peer is not None:
        variants["transformers"] = peer
    times = measure(variants, {}, repeats)
    print(f"{model} {precision}, {sequences} x {length} tokens, {torch.get_num_threads()} thread(s), {repeats} repeats")
    for name, taken in times.items():
        cpu, wall = (statistics.median(each) for each in zip(*taken, strict=True))
        size = f"  {models[name].state_bytes() / 2**20:7.0f} MiB of state" if name in models else ""
        print(f"  {name:22s} {cpu:7.3f} CPU s  {wall:7.3f} wall s  {sequences * length / wall:7.0f} tokens/s{size}")
    pairs = [(name, "dense M=1") for name in sparse] + [("dense M=3", "dense M=1")]
    pairs += [(f"{name}, update", name) for name in sparse] + [("masked M=3", name) for name in sparse[1:]]
    pairs += [("dense M=1", "transformers")] if peer is not None else []
    ratios = {f"{top} / {bottom}": ratio(times, top, bottom) for top, bottom in pairs}
    for name, found in ratios.items():
        spread = f"{found['least']:.3f} to {found['largest']:.3f}"
        print(f"  {name:36s} {found['cpu']:.3f} in CPU seconds ({spread}), {found['wall']:.3f} in wall seconds")
    shares = {name: (ratios[f"{name}, update / {name}"]["cpu"] - 1) / EVERY for name in sparse}
    for name, share in shares.items():
        print(f"  topology updates every {EVERY} steps: {share:.2%} of the time of {name}")
    _say_shares(shape, models[sparse[-1]])
    if peer is None:
        print("  transformers is not installed (extra `hf`): no peer timed")
    return {
        "model": model, "precision": precision, "times": times, "ratios": ratios, "update_shares": shares,
        "state_bytes": {name: each.state_bytes() for name, each in models.items()}, "machine": platform.processor(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _say_shares(shape: Shape, model: Ours) -> None:
    """What of a dense model the heads are, which is what sparsity makes cheaper."""
    single = account(shapes_of(our_config(shape, "fp32", heads=1, sparsity=SparsitySection()).model), {}).per_token
    counted = account(shapes_of(model.config.model), model.state.budgets)
    print(
        f"  the trunk is {1 - _of_heads(shape):.0%} of the blocks of one model; weights that a token is multiplied "
        f"with: {counted.per_token.active / single.total:.2f} of one dense model's, sparse layers' density "
        f"{counted.sparse.density:.4f}"
    )


def _of_heads(shape: Shape) -> float:
    return shape.blocks / shape.layers
