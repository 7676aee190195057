"""Convolutions of blocks, forward and both backward products, against the dense ones: bench.py layer --convolutions."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from bench_timing import Times, measure, ratio
from torch import Tensor

from nt_pretrain.sparsity.kernels.conv import block_conv
from nt_pretrain.sparsity.kernels.layout import BlockLayout

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """A convolution of ``kernel`` × ``kernel`` over maps of ``size`` × ``size`` pixels, and the fans to try."""

    channels: int
    outputs: int
    kernel: int
    size: int
    block: int
    fans: tuple[int, ...]
    stride: int = 1

    @property
    def columns(self) -> int:
        """Blocks of a line, active or not."""
        return self.kernel**2 * self.channels // self.block

    def __str__(self) -> str:
        strided = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel} {self.channels} to {self.outputs} at {self.size}{strided}"


SHAPES = (
    Shape(1024, 256, 1, 14, 64, (1, 3, 8)),
    Shape(256, 256, 3, 14, 64, (2, 4, 7, 18)),
    Shape(256, 256, 3, 14, 32, (7, 14)),
    Shape(256, 1024, 1, 14, 64, (1, 2)),
    Shape(512, 512, 3, 14, 64, (14,), stride=2),
    Shape(2048, 512, 1, 7, 64, (2, 6, 16)),
    Shape(512, 512, 3, 7, 64, (4, 7, 14, 36)),
    Shape(512, 2048, 1, 7, 64, (1, 2)),
)
"""Of stages 3 and 4 of a ResNet-50 at 224 pixels."""


def bench_conv(precision: str, pictures: int, repeats: int, compiled: bool | None) -> dict[str, object]:
    """Time every shape and density beside the dense convolution of the same type; prints a table, returns it."""
    print(
        f"convolutions, {pictures} pictures, {precision}, {torch.get_num_threads()} thread(s), {repeats} repeats: "
        "forward, gradient of the input, gradient of the weight"
    )
    print("  convolution                     block  density   CPU ms  of dense  least  to largest  of density x dense")
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        runs = {"dense": dense(shape, TYPES[precision], pictures)}
        for fan in shape.fans:
            runs[str(fan)] = sparse(shape, fan, TYPES[precision], pictures, compiled)
        times = measure(runs, {}, repeats)
        rows += [_row(shape, key, times) for key in runs]
    kernels = {None: "compiled where they can be", True: "compiled", False: "plain torch"}[compiled]
    return {
        "precision": precision, "pictures": pictures, "kernels": kernels, "rows": rows,
        "threads": torch.get_num_threads(), "machine": platform.processor(), "torch": torch.__version__,
    }  # fmt: skip


def _row(shape: Shape, key: str, times: Times) -> dict[str, object]:
    milliseconds = 1e3 * statistics.median(cpu for cpu, _ in times[key])
    if key == "dense":
        print(f"  {shape!s:30s}  dense           {milliseconds:7.1f}")
        return {"layer": str(shape), "cpu_ms": milliseconds, "times": times[key]}
    found, density = ratio(times, key, "dense"), int(key) / shape.columns
    print(
        f"  {'':30s}  {shape.block:5d}  {density:7.4f}  {milliseconds:7.1f}   {found['cpu']:7.3f}  "
        f"{found['least']:.3f} to {found['largest']:.3f}    {found['cpu'] / density:15.2f}"
    )
    return {
        "layer": str(shape), "block": shape.block, "density": density, "cpu_ms": milliseconds, "ratio": found,
        "times": times[key],
    }  # fmt: skip


def dense(shape: Shape, dtype: torch.dtype, pictures: int) -> Callable[[], None]:
    x, slope = _operands(shape, dtype, pictures)
    weight = torch.randn(shape.outputs, shape.channels, shape.kernel, shape.kernel, generator=_generator()).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    stride, padding = shape.stride, shape.kernel // 2
    return lambda: _pass(lambda: F.conv2d(x, weight, stride=stride, padding=padding), x, weight, slope)


def sparse(shape: Shape, fan: int, dtype: torch.dtype, pictures: int, compiled: bool | None) -> Callable[[], None]:
    x, slope = _operands(shape, dtype, pictures)
    chosen = torch.rand(shape.outputs // shape.block, shape.columns, generator=_generator()).topk(fan).indices
    layout = BlockLayout(shape.outputs, shape.columns * shape.block, shape.block, chosen.int())
    values = torch.randn(layout.shape, generator=_generator()).to(dtype).requires_grad_()
    kernel, stride, padding = shape.kernel, shape.stride, shape.kernel // 2
    return lambda: _pass(
        lambda: block_conv(x, values, layout, kernel, stride, padding, compiled), x, values, slope
    )  # fmt: skip


def _pass(forward: Callable[[], Tensor], x: Tensor, weight: Tensor, slope: Tensor) -> None:
    x.grad = weight.grad = None
    forward().backward(slope)


def _operands(shape: Shape, dtype: torch.dtype, pictures: int) -> tuple[Tensor, Tensor]:
    generator, out = _generator(), (shape.size - 1) // shape.stride + 1
    x = torch.randn(pictures, shape.channels, shape.size, shape.size, generator=generator).to(dtype)
    slope = torch.randn(pictures, shape.outputs, out, out, generator=generator).to(dtype)
    x, slope = (each.contiguous(memory_format=torch.channels_last) for each in (x, slope))
    return x.requires_grad_(), slope


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
