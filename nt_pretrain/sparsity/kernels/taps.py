"""Which pixels the taps of a convolution's kernel see, and the lists of blocks that go with them.

The weight [outputs, channels, k, k] of a convolution is the matrix [outputs, k * k * channels], one tap after another,
row by row of the kernel: channels_last memory order. Its block columns are tap * (channels / block) + channel block.
Where a kernel of 1 has channels that a block does not divide, the last block is padded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import BlockLayout


@dataclass(frozen=True)
class Window:
    """How a kernel moves over a picture of ``height`` × ``width`` pixels."""

    kernel: int
    stride: int
    padding: int
    height: int
    width: int

    @property
    def out_height(self) -> int:
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def out_pixels(self) -> int:
        return self.out_height * self.out_width


@dataclass(frozen=True)
class Taps:
    """Of one picture, all int32, numbered row by row.

    Pixels of a class are summed over the same taps: all of them in a forward pass; in the gradient of the input those
    with the same remainders by the stride, which only some taps have seen.
    """

    sources: Tensor
    """Of each tap, for every pixel of its class: the pixel that it reads, -1 for one in the padding."""
    starts: Tensor
    """[taps]: where a tap's run of ``sources`` begins."""
    targets: Tensor
    """The pixels of each class."""
    classes: Tensor
    """[classes + 1]: where a class's run of ``targets`` begins."""

    def tensors(self) -> list[Tensor]:
        return [self.sources, self.starts, self.targets, self.classes]


@dataclass(frozen=True)
class ConvLists:
    """The blocks by class and output row, as ``conv_product`` reads them; all int32."""

    pointers: Tensor
    """[classes * rows + 1]"""
    index: Tensor
    """Of each block, the place of its column in the class's run of ``used``."""
    slots: Tensor
    used: Tensor
    """The columns, tap * input blocks + input block, that blocks of a class read, ascending."""
    starts: Tensor
    """[classes + 1]: where a class's run of ``used`` begins."""

    def tensors(self) -> list[Tensor]:
        return [self.pointers, self.index, self.slots, self.used, self.starts]


@functools.lru_cache(maxsize=256)
def forward_taps(window: Window) -> Taps:
    """Output pixels read input pixels."""
    y, x = torch.arange(window.out_height), torch.arange(window.out_width)
    sources = []
    for down in range(window.kernel):
        for right in range(window.kernel):
            rows = y * window.stride - window.padding + down
            columns = x * window.stride - window.padding + right
            sources.append(_pixels(rows, columns, window.height, window.width))
    starts = torch.arange(window.kernel**2) * window.out_pixels
    whole = torch.tensor([0, window.out_pixels])
    return Taps(torch.cat(sources), starts.int(), torch.arange(window.out_pixels).int(), whole.int())


@functools.lru_cache(maxsize=256)
def backward_taps(window: Window) -> Taps:
    """Input pixels read the output pixels whose taps saw them."""
    stride, classes = window.stride, tap_classes(window.kernel, window.stride, window.padding).tolist()
    targets = []
    for kind in range(stride**2):
        y, x = _of_class(kind, window)
        targets.append((y[:, None] * window.width + x).reshape(-1))
    sources = []
    for tap, kind in enumerate(classes):
        y, x = _of_class(kind, window)
        down, right = divmod(tap, window.kernel)
        rows, columns = (y + window.padding - down) // stride, (x + window.padding - right) // stride
        sources.append(_pixels(rows, columns, window.out_height, window.out_width))
    return Taps(torch.cat(sources), _starts(sources)[:-1].int(), torch.cat(targets).int(), _starts(targets).int())


def tap_classes(kernel: int, stride: int, padding: int) -> Tensor:
    """int64 [taps]: the class of input pixels, by their remainders, that each tap sees."""
    remainders = (torch.arange(kernel) - padding) % stride
    return (remainders[:, None] * stride + remainders).reshape(-1)


def forward_lists(layout: BlockLayout) -> ConvLists:
    forward = layout.indices().forward
    used, index = torch.unique(forward.index, return_inverse=True)
    starts = torch.tensor([0, len(used)], dtype=torch.int32)
    return ConvLists(forward.pointers, index.int(), forward.slots, used.int(), starts)


def backward_lists(layout: BlockLayout, kernel: int, stride: int, padding: int) -> ConvLists:
    """The rows are the blocks of channels; columns are tap * block rows + block row."""
    taps, classes = kernel**2, stride**2
    channel_blocks, rows = layout.block_columns // taps, layout.block_rows
    columns = layout.columns.reshape(-1).long()
    tap, channel = columns // channel_blocks, columns % channel_blocks
    column = tap * rows + layout.indices().rows.long()
    kind = tap_classes(kernel, stride, padding)[tap]
    row = kind * channel_blocks + channel
    order = torch.argsort(row * (taps * rows) + column)
    pointers = torch.zeros(classes * channel_blocks + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(row, minlength=classes * channel_blocks).cumsum(0)
    pairs, place = torch.unique(kind * (taps * rows) + column, return_inverse=True)
    starts = torch.zeros(classes + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(pairs // (taps * rows), minlength=classes).cumsum(0)
    index = place - starts[kind]
    used = pairs % (taps * rows)
    return ConvLists(pointers, index[order].int(), order.int(), used.int(), starts.int())


def by_column(layout: BlockLayout) -> tuple[Tensor, Tensor, Tensor]:
    """int32 [active] each: block row, column and slot of all blocks, column after column."""
    columns = layout.columns.reshape(-1)
    slots = torch.argsort(columns, stable=True)
    return layout.indices().rows[slots], columns[slots], slots.int()


def _of_class(kind: int, window: Window) -> tuple[Tensor, Tensor]:
    """Rows and columns of the input pixels of class ``kind``."""
    down, right = divmod(kind, window.stride)
    return torch.arange(window.height)[down :: window.stride], torch.arange(window.width)[right :: window.stride]


def _pixels(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """int32, flat: numbers of the pixels at ``rows`` × ``columns``, -1 outside."""
    numbers = rows[:, None] * width + columns
    inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    return torch.where(inside, numbers, -1).reshape(-1).int()


def _starts(parts: list[Tensor]) -> Tensor:
    found = torch.zeros(len(parts) + 1, dtype=torch.int64)
    found[1:] = torch.tensor([len(part) for part in parts]).cumsum(0)
    return found
