"""Tokens a second of ensembles and of one dense model, one token at a time: the verb `decode` of launch/bench.py."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_timing import Times, measure, ratio
from torch import Tensor, nn

from nt_pretrain.config.schema import ModelSection, SparsitySection
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.decode import decode_step, empty_cache, prefill
from nt_pretrain.models.multihead import MultiHead, build
from nt_pretrain.sparsity.block_budget import line_budgets
from nt_pretrain.sparsity.block_topology import draw_layer
from nt_pretrain.sparsity.kernels.layout import CsrLayout, layout_of_mask
from nt_pretrain.sparsity.kernels.linear import csr_linear
from nt_pretrain.sparsity.layers import SparseLinear, replace_layers, sparse_layers

# A quarter of llama350m: 6 of its 24 blocks and 8,192 of its 32,000 tokens, so that blocks and vocabulary keep their
# shares; a feed-forward width that blocks of 64 divide (2,752 for 2,736).
SHAPE = {"hidden": 1024, "intermediate": 2752, "layers": 6, "attention_heads": 16, "vocab_size": 8192}
BLOCKS_IN_HEAD, HEADS, DENSITY, BLOCK = 4, 3, 0.2, 64
CONTEXT, STEPS = 64, 8
BATCHES = (1, 8)
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = {  # heads, unit (0: dense), scope
    "dense M=1": (1, 0, "all"),
    "dense M=3": (HEADS, 0, "all"),
    "block 64 M=3": (HEADS, BLOCK, "all"),
    "block 64 M=3, trunk dense": (HEADS, BLOCK, "heads"),
    "unit 1 M=3": (HEADS, 1, "all"),
    "unit 1 M=3, trunk dense": (HEADS, 1, "heads"),
}


class SingleWeights(nn.Module):
    """A linear layer of single active weights, as decoding needs it."""

    def __init__(self, layout: CsrLayout) -> None:
        super().__init__()
        self.weight, self.layout = nn.Parameter(torch.randn(layout.shape) * 0.02), layout

    def forward(self, x: Tensor) -> Tensor:
        return csr_linear(x, self.weight, self.layout)


@dataclass(frozen=True)
class Model:
    model: MultiHead
    section: ModelSection
    read: int  # bytes of weights and indices that a step reads


def bench_decode(precision: str, repeats: int) -> dict[str, object]:
    """Time every variant at every batch; prints tables, returns them for JSON."""
    torch.manual_seed(0)
    models = {name: make(*wanted, TYPES[precision]) for name, wanted in VARIANTS.items()}
    share = trunk_share()
    print(
        f"decode: {SHAPE['layers']} blocks of {SHAPE['hidden']} x {SHAPE['intermediate']}, {BLOCKS_IN_HEAD} of them in "
        f"each head, vocabulary {SHAPE['vocab_size']:,}, density {DENSITY}, {precision}, {torch.get_num_threads()} "
        f"thread(s), {repeats} repeats of {STEPS} steps after {CONTEXT} tokens\n"
        f"the trunk is {share:.0%} of what one dense model reads for a token"
    )
    rows: list[dict[str, object]] = []
    for batch in BATCHES:
        times = measure({name: decoding(each, batch) for name, each in models.items()}, {}, repeats)
        rows += _table(times, models, batch)
        rows += _layers_alone(models, batch, repeats)
    return {
        "precision": precision, "shape": SHAPE, "blocks_in_head": BLOCKS_IN_HEAD, "density": DENSITY, "block": BLOCK,
        "context": CONTEXT, "steps": STEPS, "trunk_share": share, "rows": rows, "threads": torch.get_num_threads(),
        "machine": platform.processor(), "torch": torch.__version__,
    }  # fmt: skip


def _table(times: Times, models: dict[str, Model], batch: int) -> list[dict[str, object]]:
    print(f"  batch {batch:<22d} MB read   CPU ms   tokens/s   times dense M=1 (least to largest)   times dense M=3")
    rows: list[dict[str, object]] = []
    for name, each in models.items():
        seconds = statistics.median(cpu for cpu, _ in times[name]) / STEPS
        one, three = ratio(times, "dense M=1", name), ratio(times, "dense M=3", name)
        print(
            f"  {name:28s} {each.read / 1e6:7.1f}  {1e3 * seconds:7.2f}   {batch / seconds:8.1f}   {one['cpu']:8.2f} "
            f"({one['least']:.2f} to {one['largest']:.2f})   {three['cpu']:20.2f}"
        )
        rows.append(
            {"variant": name, "batch": batch, "bytes_read": each.read, "cpu_seconds_per_step": seconds,
             "tokens_per_second": batch / seconds, "of_dense_one": one, "of_dense_ensemble": three,
             "times": times[name]}
        )  # fmt: skip
    return rows


def _layers_alone(models: dict[str, Model], batch: int, repeats: int) -> list[dict[str, object]]:
    """The linear layers on the path of head 0, without attention, norms and all else."""
    wanted = {"dense": "dense M=1", "block 64": "block 64 M=3", "unit 1": "unit 1 M=3"}
    times = measure({name: layers_alone(models[of], batch) for name, of in wanted.items()}, {}, repeats)
    rows: list[dict[str, object]] = []
    for name in wanted:
        milliseconds, found = (
            1e3 * statistics.median(cpu for cpu, _ in times[name]) / STEPS,
            ratio(times, "dense", name),
        )
        print(
            f"  linear layers of one path, {name:9s}  {milliseconds:7.2f}              {found['cpu']:8.2f} "
            f"({found['least']:.2f} to {found['largest']:.2f})"
        )
        rows.append(
            {"layers_alone": name, "batch": batch, "cpu_ms": milliseconds, "of_dense": found, "times": times[name]}
        )
    return rows


def make(heads: int, unit: int, scope: str, dtype: torch.dtype) -> Model:
    """A model with random weights and, with a unit, a random topology of which every matrix has the same density."""
    section = ModelSection(**SHAPE, heads=heads, blocks_in_head=BLOCKS_IN_HEAD if heads > 1 else 0)
    model = build(section)
    if unit > 1:
        _of_blocks(model, section, scope)
    elif unit == 1:
        _of_single_weights(model, scope)
    model = model.to(dtype).requires_grad_(False)
    return Model(model, section, _bytes_read(model))


def _of_blocks(model: MultiHead, section: ModelSection, scope: str) -> None:
    sparsity = SparsitySection(density=DENSITY, distribution="uniform", unit=BLOCK, balance="line", scope=scope)
    budgets = line_budgets(shapes_of(section), sparsity)
    replace_layers(model, budgets)
    for name, module in sparse_layers(model).items():
        module.place(draw_layer(name, budgets[name], torch.arange(budgets[name].lines), seed=0).columns)
        nn.init.normal_(module.weight, std=0.02)


def _of_single_weights(model: MultiHead, scope: str) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (scope == "all" or path.startswith("heads")):
            parent, _, name = path.rpartition(".")
            layout = layout_of_mask(torch.rand_like(module.weight) < DENSITY)
            setattr(model.get_submodule(parent), name, SingleWeights(layout))


def _bytes_read(model: MultiHead) -> int:
    """Of a step: all but embeddings, of which only a row or so is read."""
    found = 0
    for path, module in model.named_modules():
        if path.endswith("embedding"):
            continue
        found += sum(each.nbytes for each in module.parameters(recurse=False))
        if isinstance(module, SingleWeights):
            found += module.layout.indices().forward.short_index.nbytes
    return found


def trunk_share() -> float:
    """Of the weights that one dense model reads for a token, those in the trunk."""
    shapes = shapes_of(ModelSection(**SHAPE, heads=1, blocks_in_head=BLOCKS_IN_HEAD))
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items() if "embedding" not in name}
    return sum(size for name, size in sizes.items() if name.startswith("trunk")) / sum(sizes.values())


def decoding(of: Model, batch: int) -> Callable[[], None]:
    """``STEPS`` steps of ``batch`` sequences, each time behind the same context."""
    prompt = torch.randint(0, SHAPE["vocab_size"], (batch, CONTEXT), generator=torch.Generator().manual_seed(0))
    cache = empty_cache(of.model, of.section, sequences=batch, capacity=CONTEXT + STEPS)
    first = prefill(of.model, prompt, cache).mean(0).argmax(-1)

    def run() -> None:
        cache.lengths.fill_(CONTEXT)
        tokens = first
        for _ in range(STEPS):
            tokens = torch.softmax(decode_step(of.model, tokens, cache).float(), -1).mean(0).argmax(-1)

    return run


def layers_alone(of: Model, batch: int) -> Callable[[], None]:
    """``STEPS`` times all linear layers of trunk and head 0, ``batch`` tokens each."""
    inputs = {width: torch.randn(batch, width) for width in (SHAPE["hidden"], SHAPE["intermediate"])}
    calls: list[tuple[nn.Module, Tensor]] = []
    for path, module in of.model.named_modules():
        if isinstance(module, nn.Linear | SparseLinear | SingleWeights) and path.startswith(("trunk", "heads.0")):
            width = SHAPE["intermediate"] if path.endswith("down") else SHAPE["hidden"]
            calls.append((module, inputs[width].to(next(module.parameters()).dtype)))

    @torch.no_grad()
    def run() -> None:
        for _ in range(STEPS):
            for module, x in calls:
                module(x)

    return run
