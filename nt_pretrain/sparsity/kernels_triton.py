"""Products with block-sparse weights on a GPU: three Triton kernels over the constant-fan-in layout.

Several heads run in one launch: their block rows stand one below the other, and columns count through the inputs of all
heads, so that the weights make a block diagonal with holes. With one input for all heads (the trunk's output) columns
count through that one. :func:`joined_columns` makes the table, :class:`Plan` derives what the kernels need of it.

X is [inputs, T, K], Y [heads, T, N]; values are [heads * N / b, fan, b, b] ([outputs, inputs] inside a block). Products
are added up in fp32 in an order that the table alone decides: no atomics, the same bits every time. fp32 follows
``torch.backends.cuda.matmul.fp32_precision``.

Import this module only where a GPU is used: it needs triton, of the extra ``gpu``. Under ``TRITON_INTERPRET=1`` (set
before the import) it runs on CPU tensors, to be tested, though not in bf16, which the interpreter gets wrong.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "the block kernels for GPUs need triton, which is not installed; install the extra: "
        "pip install 'nt-pretrain[gpu]'"
    ) from error

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
UNITS = (16, 32, 64, 128)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PIECE = 64
"""Inputs (fwd), outputs (dX) or tokens (dW) that one step multiplies."""
_WAVE = 264
"""Programs that keep an H100 or H200 (132 multiprocessors) busy: with fewer blocks, dW splits the tokens."""


@dataclass(frozen=True)
class Plan:
    """The table of one layer of all heads, as the kernels read it; made anew after each topology update.

    Attributes:
        unit: side b of a block.
        block_rows, block_columns: of one head's weight.
        columns: [heads * block_rows, fan] int32, counted through the inputs of all heads.
        rows: [heads * block_rows * fan] int32, block row of each block, in the order of the values.
        starts, positions: the transposed index, [inputs * block_columns + 1] and [blocks] int32.
    """

    unit: int
    block_rows: int
    block_columns: int
    columns: Tensor
    rows: Tensor
    starts: Tensor
    positions: Tensor

    @property
    def heads(self) -> int:
        return self.columns.shape[0] // self.block_rows

    @property
    def inputs(self) -> int:
        return (self.starts.numel() - 1) // self.block_columns

    @property
    def fan(self) -> int:
        return self.columns.shape[1]


def joined_columns(columns: list[Tensor], block_columns: int, *, shared_input: bool) -> Tensor:
    """The tables [block rows, fan] of all heads as one, [heads * block rows, fan] int32.

    Args:
        shared_input: whether all heads read the same input; otherwise head i reads the i-th.
    """
    offsets = [0 if shared_input else head * block_columns for head in range(len(columns))]
    return torch.cat([table + offset for table, offset in zip(columns, offsets, strict=True)]).to(torch.int32)


def plan_of(columns: Tensor, *, unit: int, heads: int, block_columns: int, inputs: int) -> Plan:
    """Derive a :class:`Plan` from a table of :func:`joined_columns`.

    Raises:
        ValueError: a unit that no kernel has; rows that are not ``heads`` times as many; columns that do not exist.
    """
    if unit not in UNITS:
        raise ValueError(f"blocks of {unit} x {unit}: the GPU kernels have {', '.join(map(str, UNITS))}")
    if columns.dim() != 2 or heads < 1 or columns.shape[0] % heads or not columns.numel():
        raise ValueError(f"a table of columns {list(columns.shape)} is not that of {heads} heads of equal size")
    across = inputs * block_columns
    lowest, highest = int(columns.min()), int(columns.max())
    if lowest < 0 or highest >= across:
        raise ValueError(
            f"columns go from {lowest} to {highest}; {inputs} inputs of {block_columns} blocks have {across}"
        )
    flat = columns.reshape(-1).to(torch.int64)
    starts = torch.zeros(across + 1, dtype=torch.int32, device=columns.device)
    starts[1:] = torch.bincount(flat, minlength=across).cumsum(0)
    rows = torch.arange(columns.shape[0], dtype=torch.int32, device=columns.device)
    return Plan(
        unit,
        columns.shape[0] // heads,
        block_columns,
        columns.to(torch.int32).contiguous(),
        rows.repeat_interleave(columns.shape[1]),
        starts,
        torch.argsort(flat, stable=True).to(torch.int32),
    )


def plan_from(
    columns: Tensor, rows: Tensor, starts: Tensor, positions: Tensor, *, unit: int, heads: int, inputs: int
) -> Plan:
    """A :class:`Plan` of lists that were derived and checked elsewhere: nothing is computed or waited for."""
    across = (starts.numel() - 1) // inputs
    return Plan(unit, columns.shape[0] // heads, across, columns.contiguous(), rows, starts, positions)


# Kernels have no types: triton makes them from what they are called with.
@triton.jit
def _fwd(  # type: ignore[no-untyped-def]  # arguments are Triton's pointers and constants
    x, values, columns, y, tokens, x_head, x_token, y_head, y_token, block_rows, block_columns, fan,
    B: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A tile of tokens × one block row: Y[tile, r] = sum over slots of X[tile, column] @ W[r, slot]^T."""
    row = tl.program_id(0)
    rows_of_tile = tl.program_id(1) * BM + tl.arange(0, BM)
    there = rows_of_tile < tokens
    token = rows_of_tile.to(tl.int64)
    out, inner = tl.arange(0, B), tl.arange(0, BK)
    total = tl.zeros((BM, B), dtype=tl.float32)
    pieces: tl.constexpr = B // BK
    first = row.to(tl.int64) * fan
    for i in range(fan * pieces):
        slot, piece = i // pieces, i % pieces
        column = tl.load(columns + first + slot)
        source = x + (column // block_columns).to(tl.int64) * x_head + (column % block_columns) * B + piece * BK
        part = tl.load(source + token[:, None] * x_token + inner[None, :], mask=there[:, None], other=0.0)
        block = values + (first + slot) * (B * B) + piece * BK
        weight = tl.load(block + out[None, :] * B + inner[:, None])
        total = tl.dot(part, weight, total, input_precision=PRECISION)
    target = y + (row // block_rows).to(tl.int64) * y_head + (row % block_rows) * B
    tl.store(target + token[:, None] * y_token + out[None, :], total.to(y.dtype.element_ty), mask=there[:, None])


@triton.jit
def _dx(  # type: ignore[no-untyped-def]  # arguments are Triton's pointers and constants
    dy, values, starts, positions, dx, tokens, y_head, y_token, x_head, x_token, block_rows, block_columns, fan,
    B: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A tile of tokens × one block column: dX[tile, c] = sum over the blocks of the column of dY[tile, row] @ W."""
    column = tl.program_id(0)
    rows_of_tile = tl.program_id(1) * BM + tl.arange(0, BM)
    there = rows_of_tile < tokens
    token = rows_of_tile.to(tl.int64)
    out, inner = tl.arange(0, B), tl.arange(0, BK)
    total = tl.zeros((BM, B), dtype=tl.float32)
    pieces: tl.constexpr = B // BK
    first, last = tl.load(starts + column), tl.load(starts + column + 1)
    for i in range(first * pieces, last * pieces):
        position, piece = tl.load(positions + i // pieces), i % pieces
        row = position // fan
        source = dy + (row // block_rows).to(tl.int64) * y_head + (row % block_rows) * B + piece * BK
        part = tl.load(source + token[:, None] * y_token + inner[None, :], mask=there[:, None], other=0.0)
        block = values + position.to(tl.int64) * (B * B) + piece * (BK * B)
        weight = tl.load(block + inner[:, None] * B + out[None, :])
        total = tl.dot(part, weight, total, input_precision=PRECISION)
    target = dx + (column // block_columns).to(tl.int64) * x_head + (column % block_columns) * B
    tl.store(target + token[:, None] * x_token + out[None, :], total.to(dx.dtype.element_ty), mask=there[:, None])


@triton.jit
def _dw(  # type: ignore[no-untyped-def]  # arguments are Triton's pointers and constants
    dy, x, rows, columns, dw, blocks, tokens, per_split, y_head, y_token, x_head, x_token, block_rows, block_columns,
    B: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block × a stretch of tokens: dW[row, column] = sum over tokens of dY[:, row]^T X[:, column]."""
    block, split = tl.program_id(0), tl.program_id(1)
    row, column = tl.load(rows + block), tl.load(columns + block)
    side, step = tl.arange(0, B), tl.arange(0, BT)
    left = dy + (row // block_rows).to(tl.int64) * y_head + (row % block_rows) * B
    right = x + (column // block_columns).to(tl.int64) * x_head + (column % block_columns) * B
    total = tl.zeros((B, B), dtype=tl.float32)
    start = split * per_split
    for at in range(start, tl.minimum(start + per_split, tokens), BT):
        there = at + step < tokens
        token = (at + step).to(tl.int64)
        down = tl.load(left + token[None, :] * y_token + side[:, None], mask=there[None, :], other=0.0)
        across = tl.load(right + token[:, None] * x_token + side[None, :], mask=there[:, None], other=0.0)
        total = tl.dot(down, across, total, input_precision=PRECISION)
    target = dw + (split.to(tl.int64) * blocks + block) * (B * B)
    tl.store(target + side[:, None] * B + side[None, :], total)


def _tuned(kernel: Any, tiles: tuple[dict[str, int], ...], key: list[str]) -> Any:
    """``kernel`` with tile heights, warps and stages that triton times on the device, once for each value of ``key``.

    All choices are made of the same instructions in the same order for each number, so ranks may choose differently.
    The interpreter has nothing to time.
    """
    choices = [
        triton.Config(tile, num_warps=8 if tile.get("BM") == 128 else 4, num_stages=stages)
        for tile in tiles
        for stages in (3, 4)
    ]
    return triton.autotune(choices[:1] if INTERPRETED else choices, key=key)(kernel)


_KEY = ["fan", "block_columns", "B", "SIZE"]
_FEW = 16
"""Up to so many tokens, as in decoding, take tiles of their own: Hopper's wide instructions start at 64."""
_FWD = _tuned(_fwd, ({"BM": 64}, {"BM": 128}), _KEY)
_FWD_FEW = _tuned(_fwd, ({"BM": _FEW},), _KEY)
_DX = _tuned(_dx, ({"BM": 64}, {"BM": 128}), _KEY)
_DX_FEW = _tuned(_dx, ({"BM": _FEW},), _KEY)
_DW = _tuned(_dw, ({},), ["B", "per_split"])


def bs_fwd(x: Tensor, values: Tensor, plan: Plan) -> Tensor:
    """Y = X Wᵀ of all heads: X [inputs, T, K] to Y [heads, T, N], in the dtype of X.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; see the message. Also of the other products.
    """
    _ensure(plan, values=values, x=x)
    tokens = x.shape[1]
    y = x.new_empty(plan.heads, tokens, plan.block_rows * plan.unit)
    if tokens:
        x = _unit_stride(x)
        _launch_tiles(
            _FWD_FEW if tokens <= _FEW else _FWD, plan.columns.shape[0], plan, x,
            (x, values.contiguous(), plan.columns, y, tokens, x.stride(0), x.stride(1), y.stride(0), y.stride(1)),
        )  # fmt: skip
    return y


def bs_dx(dy: Tensor, values: Tensor, plan: Plan) -> Tensor:
    """dX = dY W of all heads: dY [heads, T, N] to dX [inputs, T, K]; one shared input gets the sum over heads."""
    _ensure(plan, values=values, dy=dy)
    tokens = dy.shape[1]
    dx = dy.new_empty(plan.inputs, tokens, plan.block_columns * plan.unit)
    if tokens:
        dy = _unit_stride(dy)
        _launch_tiles(
            _DX_FEW if tokens <= _FEW else _DX, plan.inputs * plan.block_columns, plan, dy,
            (dy, values.contiguous(), plan.starts, plan.positions, dx, tokens, dy.stride(0), dy.stride(1),
             dx.stride(0), dx.stride(1)),
        )  # fmt: skip
    return dx


def bs_dw(dy: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """dW on the active blocks: dY [heads, T, N] and X [inputs, T, K] to fp32 [heads * block rows, fan, b, b]."""
    blocks = bs_dw_at(dy, x, plan, plan.rows, plan.columns.view(-1))
    return blocks.view(*plan.columns.shape, plan.unit, plan.unit)


def bs_dw_at(dy: Tensor, x: Tensor, plan: Plan, rows: Tensor, columns: Tensor) -> Tensor:
    """dW of any blocks, e.g. candidates to grow: fp32 [n, b, b].

    Args:
        rows, columns: [n] int32, block rows of all heads and block columns of all inputs.
    """
    _ensure(plan, dy=dy, x=x)
    tokens, blocks, b = x.shape[1], rows.numel(), plan.unit
    if not tokens or not blocks:
        return torch.zeros(blocks, b, b, dtype=torch.float32, device=x.device)
    dy, x = _unit_stride(dy), _unit_stride(x)
    tiles = triton.cdiv(tokens, 2 * _PIECE)
    splits = min(tiles, max(1, _WAVE // blocks), 64)
    # Rounded up to a power of two, so that few numbers of tokens are tuned for.
    per_split = triton.next_power_of_2(triton.cdiv(tiles, splits)) * 2 * _PIECE
    splits = triton.cdiv(tokens, per_split)
    parts = torch.empty(splits, blocks, b, b, dtype=torch.float32, device=x.device)
    _DW[(blocks, splits)](
        dy, x, rows, columns, parts, blocks, tokens, per_split, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
        plan.block_rows, plan.block_columns, B=b, BT=_piece(_PIECE, x.dtype), PRECISION=_precision(x.dtype),
    )  # fmt: skip
    return parts.sum(dim=0) if splits > 1 else parts[0]


def _launch_tiles(kernel: Any, lines: int, plan: Plan, like: Tensor, arguments: tuple[object, ...]) -> None:
    """Run ``kernel`` on tiles of the tokens of ``like`` × ``lines``; lines vary fastest: they share their tile of X."""
    tokens = like.shape[1]
    kernel[lambda chosen: (lines, triton.cdiv(tokens, chosen["BM"]))](
        *arguments, plan.block_rows, plan.block_columns, plan.fan, B=plan.unit, BK=_piece(plan.unit, like.dtype),
        PRECISION=_precision(like.dtype), SIZE=min(1024, triton.next_power_of_2(tokens)),
    )  # fmt: skip


def _piece(extent: int, dtype: torch.dtype) -> int:
    """How much of ``extent`` one step multiplies: at most 128 bytes a row."""
    return min(extent, 32 if dtype == torch.float32 else _PIECE)


def _precision(dtype: torch.dtype) -> str:
    # Not allow_tf32, which raises where fp32_precision was set; this one sees both.
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _ensure(plan: Plan, *, values: Tensor | None = None, x: Tensor | None = None, dy: Tensor | None = None) -> None:
    """Raise ValueError unless the tensors fit the plan and one another."""
    b = plan.unit
    wanted = {
        "values": (values, (*plan.columns.shape, b, b)),
        "x": (x, (plan.inputs, None, plan.block_columns * b)),
        "dy": (dy, (plan.heads, None, plan.block_rows * b)),
    }
    given = {name: tensor for name, (tensor, _) in wanted.items() if tensor is not None}
    for name, tensor in given.items():
        shape = wanted[name][1]
        fits = len(shape) == tensor.dim() and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            expected = ", ".join("tokens" if want is None else str(want) for want in shape)
            raise ValueError(f"{name} has shape {list(tensor.shape)}, [{expected}] expected")
        if tensor.device != plan.columns.device or (tensor.device.type != "cuda" and not INTERPRETED):
            raise ValueError(
                f"{name} is on {tensor.device} and the table of blocks on {plan.columns.device}; these kernels need "
                "both on one CUDA device (or on the CPU under TRITON_INTERPRET=1)"
            )
    dtypes = {name: tensor.dtype for name, tensor in given.items()}
    if len(set(dtypes.values())) > 1 or next(iter(dtypes.values())) not in _DTYPES:
        told = ", ".join(f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items())
        raise ValueError(f"{told}: the GPU kernels need one dtype: float32, bfloat16 or float16")
    if INTERPRETED and torch.bfloat16 in dtypes.values():
        raise ValueError("triton's interpreter multiplies bfloat16 wrongly; use float32 or float16 with it")
    if x is not None and dy is not None and x.shape[1] != dy.shape[1]:
        raise ValueError(f"x has {x.shape[1]} tokens, dy {dy.shape[1]}")
