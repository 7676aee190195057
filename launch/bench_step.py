"""An optimizer step of our models, of the plain one and of transformers': the verb `step` of launch/bench.py."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable

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
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from nt_pretrain.train.topology import update_topology

SHAPES = {  # hidden, intermediate, layers, attention heads, blocks in head (NeuroTrails, arXiv 2505.17909, code)
    "9m": (128, 352, 4, 4, 2),
    "20m": (256, 688, 4, 4, 2),
    "60m": (512, 1376, 8, 8, 5),
}
SEQUENCES, LENGTH, VOCABULARY = 4, 256, 32_000


def our_config(model: str, precision: str, *, heads: int, density: float) -> Config:
    hidden, intermediate, layers, attention_heads, blocks = SHAPES[model]
    return Config(
        run=RunSection(device="cpu", threads_per_rank=torch.get_num_threads()),
        model=ModelSection(
            vocab_size=VOCABULARY, hidden=hidden, intermediate=intermediate, layers=layers,
            attention_heads=attention_heads, heads=heads, blocks_in_head=blocks if heads > 1 else 0,
        ),
        sparsity=SparsitySection(density=density),
        train=TrainSection(global_batch=SEQUENCES, micro_batch=SEQUENCES, precision=precision),
        optim=OptimSection(clip=1.0),
    )  # fmt: skip


class Ours:
    """One of our models with everything a step needs."""

    def __init__(self, config: Config, ranks: Ranks, tokens: torch.Tensor) -> None:
        self.config, self.ranks, self.tokens = config, ranks, tokens
        self.documents = torch.zeros_like(tokens)
        self.state: TrainState = fresh_state(config, ranks)

    def step(self) -> None:
        self.gradients()
        apply_gradients(self.state.optimizer, self.state.layers, self.config, self.ranks, 1e-3)

    def gradients(self) -> None:
        accumulate_gradients(self.state.model, self.config, Inputs.of_text(self.tokens, self.documents), self.ranks)

    def update(self) -> None:
        """The topology update alone; gradients must be there."""
        update_topology(
            self.state.layers, self.state.layer_tensors(), self.config, self.ranks, targets=self.state.budgets,
            prune_rate=0.5, step=50,
        )  # fmt: skip


def peer_step(model: str, precision: str, tokens: torch.Tensor) -> Callable[[], None] | None:
    """A training step of transformers' LlamaForCausalLM of the same shape; None if transformers is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    hidden, intermediate, layers, attention_heads, _ = SHAPES[model]
    peer: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
            num_attention_heads=attention_heads, tie_word_embeddings=False, use_cache=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, fused=True)
    inputs = tokens[:, :LENGTH].long()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = peer(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_step(model: str, precision: str, repeats: int) -> dict[str, object]:
    """Run all variants and print the table; returns it for JSON."""
    ranks = connect(our_config(model, precision, heads=1, density=1.0))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    sparse = Ours(our_config(model, precision, heads=3, density=0.9), ranks, tokens)
    tree = Ours(our_config(model, precision, heads=3, density=1.0), ranks, tokens)
    dense = Ours(our_config(model, precision, heads=1, density=1.0), ranks, tokens)
    variants = {"sparse M=3": sparse.step, "TreeNet M=3": tree.step, "update": sparse.update, "dense M=1": dense.step}
    peer = peer_step(model, precision, tokens)
    if peer is not None:
        variants["transformers"] = peer
    times = measure(variants, {"update": sparse.gradients}, repeats)
    pairs = [("sparse M=3", "TreeNet M=3"), ("update", "sparse M=3"), ("sparse M=3", "dense M=1")]
    pairs += [("dense M=1", "transformers")] if peer is not None else []
    print(f"{model} {precision}, {SEQUENCES} x {LENGTH} tokens, {torch.get_num_threads()} thread(s), {repeats} repeats")
    for name, taken in times.items():
        cpu, wall = (statistics.median(each) for each in zip(*taken, strict=True))
        print(f"  {name:14s} {cpu:7.3f} CPU s  {wall:7.3f} wall s (medians)")
    ratios = {f"{top} / {bottom}": ratio(times, top, bottom) for top, bottom in pairs}
    for name, found in ratios.items():
        spread = f"{found['least']:.3f} to {found['largest']:.3f}"
        print(f"  {name:26s} {found['cpu']:.3f} in CPU seconds ({spread}), {found['wall']:.3f} in wall seconds")
    if peer is None:
        print("  transformers is not installed (extra `hf`): no peer timed")
    return {"model": model, "precision": precision, "times": times, "ratios": ratios, "machine": platform.processor()}
