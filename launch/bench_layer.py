"""One sparse linear layer, forward and both backward products, against the dense one: the verb `layer` of bench.py."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_timing import Times, measure, ratio
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout, layout_of_mask
from nt_pretrain.sparsity.kernels.linear import block_linear, csr_linear

TOKENS, INPUTS, OUTPUTS = 2048, 1024, 2752
DENSITIES = {"block 16": (0.125, 0.1875, 0.5), "block 32": (0.125, 0.1875, 0.5), "block 64": (0.125, 0.1875, 0.5),
             "block 128": (0.125, 0.25, 0.5), "csr": (0.1, 0.2)}  # fmt: skip
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Variant:
    """A layer that can run: its density as it is, and one training pass."""

    density: float
    run: Callable[[], None]


def bench_layer(precision: str, repeats: int, compiled: bool | None) -> dict[str, object]:
    """Time every format and density beside the dense layer of the same type; prints a table, returns it for JSON."""
    print(
        f"layer {INPUTS} x {OUTPUTS}, {TOKENS} tokens, {precision}, {torch.get_num_threads()} thread(s), "
        f"{repeats} repeats: forward, gradient of the input, gradient of the weight"
    )
    print("  layer      density   CPU ms   of dense  least  to largest  of density x dense   wall ratio")
    rows: list[dict[str, object]] = []
    for name, densities in DENSITIES.items():
        variants = {"dense": dense(TYPES[precision])}
        for density in densities:
            variants[f"{density:g}"] = sparse(name, density, TYPES[precision], compiled)
        times = measure({key: each.run for key, each in variants.items()}, {}, repeats)
        rows += [_row(name, key, each.density, times) for key, each in variants.items()]
    kernels = {None: "compiled where they can be", True: "compiled", False: "plain torch"}[compiled]
    return {
        "precision": precision, "tokens": TOKENS, "inputs": INPUTS, "outputs": OUTPUTS, "kernels": kernels,
        "rows": rows, "threads": torch.get_num_threads(), "machine": platform.processor(), "torch": torch.__version__,
    }  # fmt: skip


def _row(name: str, key: str, density: float, times: Times) -> dict[str, object]:
    milliseconds = 1e3 * statistics.median(cpu for cpu, _ in times[key])
    if key == "dense":
        print(f"  {'dense':9s}            {milliseconds:7.1f}")
        return {"layer": "dense", "beside": name, "cpu_ms": milliseconds, "times": times[key]}
    found = ratio(times, key, "dense")
    print(
        f"  {name:9s}  {density:7.4f}  {milliseconds:7.1f}   {found['cpu']:7.3f}   {found['least']:.3f} to "
        f"{found['largest']:.3f}    {found['cpu'] / density:15.2f}   {found['wall']:14.3f}"
    )
    return {"layer": name, "density": density, "cpu_ms": milliseconds, "ratio": found, "times": times[key]}


def dense(dtype: torch.dtype) -> Variant:
    x, slope = _operands(dtype)
    weight = torch.randn(OUTPUTS, INPUTS, generator=_generator()).to(dtype).requires_grad_()
    return Variant(1.0, lambda: _pass(lambda: torch.nn.functional.linear(x, weight), x, weight, slope))


def sparse(name: str, density: float, dtype: torch.dtype, compiled: bool | None) -> Variant:
    """``name``: "block B" with a constant fan-in, or "csr"."""
    x, slope = _operands(dtype)
    generator = _generator()
    if name == "csr":
        single = layout_of_mask(torch.rand(OUTPUTS, INPUTS, generator=generator) < density)
        values = torch.randn(single.shape, generator=generator).to(dtype).requires_grad_()
        actual = values.numel() / (OUTPUTS * INPUTS)
        return Variant(actual, lambda: _pass(lambda: csr_linear(x, values, single, compiled), x, values, slope))
    block = int(name.split()[1])
    rows, columns = -(-OUTPUTS // block), -(-INPUTS // block)
    chosen = torch.rand(rows, columns, generator=generator).topk(round(density * columns)).indices
    layout = BlockLayout(OUTPUTS, INPUTS, block, chosen.int())
    values = layout.from_dense(torch.randn(OUTPUTS, INPUTS, generator=generator)).to(dtype).requires_grad_()
    return Variant(
        layout.fan_in / columns, lambda: _pass(lambda: block_linear(x, values, layout, compiled), x, values, slope)
    )


def _pass(forward: Callable[[], Tensor], x: Tensor, weight: Tensor, slope: Tensor) -> None:
    x.grad = weight.grad = None
    forward().backward(slope)


def _operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = _generator()
    x = torch.randn(TOKENS, INPUTS, generator=generator).to(dtype).requires_grad_()
    return x, torch.randn(TOKENS, OUTPUTS, generator=generator).to(dtype)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
