"""One sparse layer on a GPU: stk, torch's BSR, our Triton kernels, masks and the dense layer: `layer --device cuda`.

Forward, gradient of the input and gradient of the weight, for one head and for three. The clock is the device's own,
and the queue is filled before it starts: what Python takes to launch is not in the figures. A way that fails on this
machine is left out with its reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.sparsity.kernels.heads import HeadsLayout, heads_linear
from nt_pretrain.sparsity.kernels.layout import BlockLayout
from nt_pretrain.sparsity.kernels.linear import block_linear
from nt_pretrain.sparsity.topology import mask_

SHAPES = ((1024, 2816), (4096, 11_008))
"""Inputs and outputs of a feed-forward layer of LLaMA-350M (22 blocks of 128 wide) and of LLaMA-7B."""
DENSITIES = (0.125, 0.25, 0.5)
UNITS = (64, 128)
HEADS = 3
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PASSES = 5
"""Of a variant, one behind the other, between two readings of the clock."""
LARGE = 8192
"""Side of the dense product whose rate is called the peak, and which fills the queue."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One layer to time: its operands, and the seconds of a few passes of something."""

    inputs: int
    outputs: int
    tokens: int
    dtype: torch.dtype
    device: torch.device

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def layout(self, unit: int, density: float) -> BlockLayout:
        rows, columns = self.outputs // unit, self.inputs // unit
        fan = max(1, round(density * columns))
        return BlockLayout(
            self.outputs, self.inputs, unit, torch.rand(rows, columns, device=self.device).topk(fan).indices.int()
        )

    def operations(self, density: float, heads: int) -> float:
        """Of forward and both gradients, on active weights only."""
        return 6.0 * self.tokens * self.inputs * self.outputs * density * heads


@dataclass
class Variant:
    """Something to time beside the dense layer of as many heads."""

    name: str
    density: float
    heads: int
    run: Run
    seconds: list[float] = field(default_factory=list)


def bench_layer_gpu(precision: str, tokens: list[int], repeats: int, device: torch.device) -> list[dict[str, object]]:
    """A table for each shape and number of tokens; returns them for JSON."""
    dtype = TYPES[precision]
    peak = _peak(dtype, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    print(
        f"{name}, {precision}: a dense product of {LARGE} x {LARGE} x {LARGE} runs at {peak / 1e12:.3g} TFLOP/s, "
        "called the peak"
    )
    found = []
    for inputs, outputs in SHAPES:
        for count in tokens:
            case = Case(inputs, outputs, count, dtype, device)
            found.append(_table(case, repeats, peak) | {"precision": precision, "machine": name})
    return found


def _table(case: Case, repeats: int, peak: float) -> dict[str, object]:
    print(
        f"\nlayer {case.inputs} x {case.outputs}, {case.tokens:,} tokens, {repeats} repeats: forward, gradient of the "
        "input, gradient of the weight\n"
        "  heads  way                    density       ms  of dense  least to largest  of density x dense  "
        "TFLOP/s  of peak"
    )
    rows: list[dict[str, object]] = []
    left_out: dict[str, str] = {}
    for heads in (1, HEADS):
        x = case.draw(heads, case.tokens, case.inputs).requires_grad_()
        slope = case.draw(heads, case.tokens, case.outputs)
        variants = _warm([_dense(case, x, slope), _masked(case, x, slope)], left_out)
        for density in DENSITIES:
            variants += _warm(_sparse(case, x, slope, density), left_out)
        for repeat in range(repeats):
            for variant in variants if repeat % 2 else reversed(variants):
                variant.seconds.append(_seconds(variant.run, case.device))
        rows += [_row(case, variant, variants[0], peak) for variant in variants]
        del variants
    for name, why in left_out.items():
        print(f"  left out: {name}: {why}")
    shape = {"inputs": case.inputs, "outputs": case.outputs, "tokens": case.tokens}
    return shape | {"rows": rows, "left_out": left_out, "peak": peak, "torch": torch.__version__}


def _row(case: Case, variant: Variant, dense: Variant, peak: float) -> dict[str, object]:
    ratios = [a / b for a, b in zip(variant.seconds, dense.seconds, strict=True)]
    seconds, ratio = statistics.median(variant.seconds), statistics.median(ratios)
    rate = case.operations(variant.density, variant.heads) / seconds
    print(
        f"  {variant.heads:5d}  {variant.name:21s}  {variant.density:7.4f}  {1e3 * seconds:7.3f}  {ratio:8.3f}  "
        f"{min(ratios):5.3f} to {max(ratios):5.3f}    {ratio / variant.density:18.2f}  {rate / 1e12:7.3g}  "
        f"{rate / peak:7.1%}"
    )
    return {
        "heads": variant.heads, "way": variant.name, "density": variant.density, "ms": 1e3 * seconds, "of_dense": ratio,
        "least": min(ratios), "largest": max(ratios), "tflops": rate / 1e12, "seconds": variant.seconds,
    }  # fmt: skip


def _warm(variants: list[Variant], left_out: dict[str, str]) -> list[Variant]:
    """Those that run, each run once: kernels are compiled and tuned. The others' reasons go into ``left_out``."""
    kept = []
    for variant in variants:
        try:
            variant.run()
            kept.append(variant)
        except Exception as error:  # of whatever kind: a library that fails here is left out of the table, and told
            left_out[f"{variant.name}, {variant.heads} head(s)"] = " ".join(str(error).split())[:300]
    return kept


def _dense(case: Case, x: Tensor, slope: Tensor) -> Variant:
    weights = [case.draw(case.outputs, case.inputs).requires_grad_() for _ in x]
    return Variant("dense", 1.0, len(x), lambda: _each(x, weights, slope))


def _masked(case: Case, x: Tensor, slope: Tensor) -> Variant:
    weights = [case.draw(case.outputs, case.inputs).requires_grad_() for _ in x]
    active = (torch.rand(case.outputs * case.inputs, device=case.device) < DENSITIES[0]).contiguous()

    def run() -> None:
        _each(x, weights, slope)
        for weight in weights:
            assert weight.grad is not None
            mask_(weight.grad, active)

    # Its operations are counted as dense ones: that is what it does.
    return Variant("masked", 1.0, len(x), run)


def _sparse(case: Case, x: Tensor, slope: Tensor, density: float) -> list[Variant]:
    """The ways at one density; where heads can run together, that beside one after another."""
    found, heads = [], len(x)
    for unit in UNITS:
        layouts = [case.layout(unit, density) for _ in range(heads)]
        actual = layouts[0].fan_in / layouts[0].block_columns
        values = [case.draw(*layout.shape).requires_grad_() for layout in layouts]
        found.append(Variant(f"Triton {unit}", actual, heads, _one_by_one(layouts, x, values, slope)))
        ways = (("triton",) if heads > 1 else ()) + (("stk",) if unit == 128 else ())
        for by in ways:
            name = "stk 128" if by == "stk" else f"Triton {unit}, one call"
            found.append(Variant(name, actual, heads, _together(layouts, x, values, slope, by)))
        if heads == 1:
            found.append(Variant(f"torch BSR {unit}", actual, 1, _bsr(layouts[0], x[0], values[0], slope[0])))
    return found


def _each(x: Tensor, weights: list[Tensor], slope: Tensor) -> None:
    for head, weight in enumerate(weights):
        part = x[head].detach().requires_grad_()
        weight.grad = None
        F.linear(part, weight).backward(slope[head])


def _one_by_one(layouts: list[BlockLayout], x: Tensor, values: list[Tensor], slope: Tensor) -> Run:
    def run() -> None:
        for head, layout in enumerate(layouts):
            part, own = x[head].detach().requires_grad_(), values[head]
            own.grad = None
            block_linear(part, own, layout, True).backward(slope[head])

    return run


def _together(layouts: list[BlockLayout], x: Tensor, values: list[Tensor], slope: Tensor, by: str) -> Run:
    heads = HeadsLayout(tuple(layouts))

    def run() -> None:
        x.grad = None
        for own in values:
            own.grad = None
        heads_linear(x, values, heads, by="stk" if by == "stk" else "triton").backward(slope)

    return run


def _bsr(layout: BlockLayout, x: Tensor, values: Tensor, slope: Tensor) -> Run:
    """torch's own kernels for block-sparse rows, which have no backward pass: its three products one after another."""

    def run() -> None:
        # A private module: there is no public product for the gradient of the weight.
        from torch.sparse import _triton_ops

        with torch.no_grad():
            F.linear(x, made[0])
            F.linear(slope, made[1])
            _triton_ops.sampled_addmm(made[0], slope.t(), x, beta=0.0)

    made: list[Tensor] = []
    with torch.no_grad():
        dense = layout.to_dense(values)
        block = (layout.block, layout.block)
        made += [dense.to_sparse_bsr(block), dense.t().contiguous().to_sparse_bsr(block)]
    return run


def _peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a large dense product."""
    left = torch.randn(LARGE, LARGE, device=device, dtype=dtype)
    right = torch.randn(LARGE, LARGE, device=device, dtype=dtype)
    torch.mm(left, right)
    taken = [_seconds(lambda: torch.mm(left, right), device) for _ in range(3)]
    return 2.0 * LARGE**3 / statistics.median(taken)


def _seconds(run: Run, device: torch.device) -> float:
    """Of one pass of ``run``, on average over some, by the device's clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    filler = torch.empty(LARGE, LARGE, device=device, dtype=torch.bfloat16)
    for _ in range(4):  # some milliseconds, in which Python gets ahead of the device
        torch.mm(filler, filler)
    first.record()
    for _ in range(PASSES):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / PASSES
