"""Time the sparse matrices of a configuration on this machine: dense, masked, blocks of every size, single weights.

A micro-batch of random numbers goes forward and backward through one matrix of each kind, every way in turn and every
second round in reverse order, each kind for its share of the seconds there are. Few tokens are timed where many would
take too long; times are then scaled, which is fair from some hundred tokens on.

On a quiet CPU a pass takes as many threads as a rank would and its time is that of the clock. Where other work runs,
threads that wait for one another measure that work, so one thread is timed by the CPU seconds it gets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.models.groups import balance_of
from nt_pretrain.parallel.mesh import wants_cuda
from nt_pretrain.rehearsal.matrices import Kind, Matrices, matrices_of
from nt_pretrain.sparsity.capabilities import Capability
from nt_pretrain.sparsity.kernels.heads import HeadsLayout, heads_linear
from nt_pretrain.sparsity.kernels.layout import BlockLayout, layout_of_mask
from nt_pretrain.sparsity.kernels.linear import block_linear, csr_linear
from nt_pretrain.sparsity.topology import mask_

TYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "pure_bf16": torch.bfloat16, "fp64": torch.float64
}  # fmt: skip
FEWEST_TOKENS = 128
LEAST_ROUNDS, MOST_ROUNDS = 3, 25
QUIET = 0.15
"""Share of this machine's cores that others may use while timings by the clock still tell something."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Timed:
    """Of one kind: how many tokens and rounds were timed, and of each way the seconds of a whole micro-batch.

    Attributes:
        seconds: median over the rounds.
        of_dense: median over the rounds of the ratio within a round.
    """

    kind: Kind
    tokens: int
    rounds: int
    seconds: dict[str, float]
    of_dense: dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """All that was found; :mod:`nt_pretrain.rehearsal.advice` says it."""

    device: str
    how: str
    precision: str
    tokens: int
    matrices: Matrices
    timed: list[Timed]


def calibrate(config: Config, capabilities: list[Capability], seconds: float, progress: Progress) -> Calibration:
    """Time every way that runs here for about ``seconds``.

    Raises:
        NothingToTime: there is no sparse matrix.
    """
    matrices = matrices_of(config)
    device = torch.device("cuda" if wants_cuda(config) and torch.cuda.is_available() else "cpu")
    runs = {each.name for each in capabilities if each.runs}
    length = 1 if config.model.classifies else config.data.sequence_length
    dtype, tokens = TYPES[config.train.precision], config.train.micro_batch * length
    end = time.monotonic() + seconds
    with _clock(device) as (clock, how):
        timed = []
        for at, kind in enumerate(matrices.kinds):
            left = max(0.0, end - time.monotonic())
            share = left * kind.weight / sum(each.weight for each in matrices.kinds[at:])
            progress(f"calibrating: {at + 1} of {len(matrices.kinds)} kinds of matrices, {left:.0f} s left")
            ways = ways_of(kind, dtype, device, with_stk="stk" in runs)
            given = _Given(kind.shape, dtype, device, clock)
            timed.append(time_kind(kind, ways, tokens, share, given))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return Calibration(name, how, config.train.precision, tokens, matrices, timed)


@contextmanager
def _clock(device: torch.device) -> Iterator[tuple[Callable[[], float], str]]:
    """What tells the seconds here, and in words."""
    if device.type == "cuda":
        yield time.perf_counter, "by the clock"
        return
    threads, busy = torch.get_num_threads(), psutil.cpu_percent(interval=0.5) / 100
    if busy <= QUIET:
        yield time.perf_counter, f"{threads} thread(s), by the clock"
        return
    torch.set_num_threads(1)
    try:
        yield time.thread_time, f"CPU seconds of one thread: other work uses {busy:.0%} of this machine"
    finally:
        torch.set_num_threads(threads)


Way = Callable[[Tensor, Tensor], None]
"""One training pass of a matrix: of x [tokens, inputs] and the gradient [tokens, outputs] of its output."""


def ways_of(kind: Kind, dtype: torch.dtype, device: torch.device, *, with_stk: bool) -> dict[str, Way]:
    """All ways to multiply one matrix of ``kind`` on ``device``, by name."""
    outputs, inputs = kind.shape
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator, device=device, dtype=dtype).requires_grad_()
    mask = torch.rand(outputs, inputs, generator=generator, device=device) < kind.density
    active = mask.flatten()

    def masked(x: Tensor, slope: Tensor) -> None:
        _pass(lambda: F.linear(x, weight), x, weight, slope)
        assert weight.grad is not None
        mask_(weight.grad, active)

    found: dict[str, Way] = {
        "dense": lambda x, slope: _pass(lambda: F.linear(x, weight), x, weight, slope),
        "masked": masked,
    }
    if device.type == "cpu":
        found["single weights"] = _single(mask, dtype)
    for unit in kind.fans:
        found[f"block {unit}"] = _blocks(kind, unit, dtype, generator, stk=False)
        if with_stk and unit == 128 and device.type == "cuda":
            found["block 128, stk"] = _blocks(kind, unit, dtype, generator, stk=True)
    return found


def _single(mask: Tensor, dtype: torch.dtype) -> Way:
    layout = layout_of_mask(mask)
    values = torch.ones(layout.shape, dtype=dtype).requires_grad_()
    return lambda x, slope: _pass(lambda: csr_linear(x, values, layout), x, values, slope)


def _blocks(kind: Kind, unit: int, dtype: torch.dtype, generator: torch.Generator, *, stk: bool) -> Way:
    turned = balance_of(kind.name) == "col"
    lines, across = reversed(kind.shape) if turned else kind.shape
    scores = torch.rand(lines // unit, across // unit, generator=generator, device=generator.device)
    layout = BlockLayout(lines, across, unit, scores.topk(kind.fans[unit]).indices.int())
    shape, device = layout.shape, generator.device
    values = torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
    if stk:
        heads = HeadsLayout((layout,))
        return lambda x, slope: _pass(
            lambda: heads_linear(x, [values], heads, shared=True, turned=turned, by="stk")[0], x, values, slope
        )
    return lambda x, slope: _pass(lambda: block_linear(x, values, layout, turned=turned), x, values, slope)


def _pass(forward: Callable[[], Tensor], x: Tensor, weight: Tensor, slope: Tensor) -> None:
    x.grad = weight.grad = None
    forward().backward(slope)


@dataclass(frozen=True)
class _Given:
    """What a pass is given, and what tells its seconds."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    clock: Callable[[], float]

    def operands(self, tokens: int) -> tuple[Tensor, Tensor]:
        outputs, inputs = self.shape
        x = torch.randn(tokens, inputs, dtype=self.dtype, device=self.device).requires_grad_()
        return x, torch.randn(tokens, outputs, dtype=self.dtype, device=self.device)

    def round(self, ways: dict[str, Way], x: Tensor, slope: Tensor) -> dict[str, float]:
        """Seconds of one pass of each way."""
        found = {}
        for name, way in ways.items():
            self._wait()
            begin = self.clock()
            way(x, slope)
            self._wait()
            found[name] = self.clock() - begin
        return found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def time_kind(kind: Kind, ways: dict[str, Way], tokens: int, seconds: float, given: _Given) -> Timed:
    """Rounds of all ``ways`` for about ``seconds``, of as many of ``tokens`` tokens as that allows."""
    end = time.monotonic() + seconds
    few = min(tokens, FEWEST_TOKENS)
    operands = given.operands(few)
    given.round(ways, *operands)  # loads and tunes
    begin = time.monotonic()
    given.round(ways, *operands)
    once = max(time.monotonic() - begin, 1e-6)
    affordable = int(few / once * (end - time.monotonic()) / (LEAST_ROUNDS + 1)) // FEWEST_TOKENS * FEWEST_TOKENS
    chosen = min(tokens, max(few, affordable))
    if chosen > few:
        operands = given.operands(chosen)
        given.round(ways, *operands)
    rounds: list[dict[str, float]] = []
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.monotonic() < end):
        order = ways if len(rounds) % 2 else dict(reversed(ways.items()))
        rounds.append(given.round(order, *operands))
    scale = tokens / chosen
    return Timed(
        kind, chosen, len(rounds),
        {way: scale * statistics.median(taken[way] for taken in rounds) for way in ways},
        {way: statistics.median(taken[way] / max(taken["dense"], 1e-9) for taken in rounds) for way in ways},
    )  # fmt: skip
