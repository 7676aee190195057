"""Where the active weights of a linear layer [outputs, inputs] are: whole blocks, or single weights (CSR).

A layer whose shape is no multiple of the block is padded at its right and lower edge: the padded part of a block holds
zeros, which neither take part in a product nor get a gradient, so they stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

T = TypeVar("T")


class LayoutError(ValueError):
    """Indices or shapes that describe no layer."""


@dataclass(frozen=True)
class Lists:
    """For every output (block) the inputs (blocks) it sums over, and the slot of the weights it takes for each."""

    pointers: Tensor
    """int32 [outputs + 1]: entry o's list is [pointers[o], pointers[o + 1])."""
    index: Tensor
    """int32 [active]."""
    slots: Tensor
    """int32 [active]."""

    @cached_property
    def short_index(self) -> Tensor:
        """``index`` as uint16 where it fits: a third less to read beside single float32 weights."""
        fits = not len(self.index) or int(self.index.max()) < 1 << 16
        return self.index.to(torch.uint16) if fits else self.index

    @cached_property
    def on_host(self) -> tuple[list[int], list[int]]:
        """``pointers`` and ``index`` as Python numbers, fetched once: a loop over them waits for no device."""
        return self.pointers.tolist(), self.index.tolist()


@dataclass(frozen=True)
class Indices:
    """What the products of one layout read: made from the layout, never changed."""

    forward: Lists
    backward: Lists
    """The same entries by input: for the gradient of the input."""
    rows: Tensor
    """int32 [active]: the output (block) of each slot."""


def _indices(rows: Tensor, columns: Tensor, row_count: int, column_count: int) -> Indices:
    """``rows`` (ascending) and ``columns`` of every slot, both int64."""
    slots = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    order = torch.sort(columns, stable=True).indices
    forward = Lists(pointers_of(rows, row_count), columns.int(), slots)
    backward = Lists(pointers_of(columns, column_count), rows.gather(0, order).int(), order.int())
    return Indices(forward, backward, rows.int())


def pointers_of(of: Tensor, count: int) -> Tensor:
    """int32 [count + 1]: where the entries of each of 0 to count - 1 begin in a list that is sorted by ``of``."""
    # Not bincount: the size of what it returns depends on values, which a rehearsal has not.
    counted = torch.zeros(count + 1, dtype=torch.int32, device=of.device)
    return counted.scatter_add_(0, of + 1, torch.ones_like(of, dtype=torch.int32)).cumsum(0, dtype=torch.int32)


@dataclass
class BlockLayout:
    """``fan_in`` active blocks of ``block`` × ``block`` weights in every block row.

    The values of slot s of row r, block (r, columns[r, s]), are ``values[r, s]``, laid out [output, input]. A slot
    keeps its place while ``columns`` changes, so parameters and moments do too.
    """

    outputs: int
    inputs: int
    block: int
    columns: Tensor
    """int32 [block rows, fan_in], changed in place by a topology update; distinct within a row. The products run on
    its device."""
    _indices: Indices | None = field(default=None, init=False, repr=False, compare=False)
    _version: int = field(default=-1, init=False, repr=False, compare=False)
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.outputs, self.inputs, self.block) < 1:
            raise LayoutError(
                f"a layer of {self.outputs} × {self.inputs} in blocks of {self.block} has no weight: "
                "all three must be at least 1"
            )
        if self.columns.dtype != torch.int32 or self.columns.dim() != 2:
            raise LayoutError(
                f"columns must be an int32 tensor [block rows, fan-in], not {_what(self.columns)}: "
                "convert it with .to(torch.int32)"
            )
        if len(self.columns) != self.block_rows:
            raise LayoutError(
                f"columns has {len(self.columns)} rows, but {self.outputs} outputs in blocks of {self.block} are "
                f"{self.block_rows} block rows: give one row of columns for each"
            )
        if not 1 <= self.fan_in <= self.block_columns:
            raise LayoutError(
                f"a fan-in of {self.fan_in} blocks: {self.inputs} inputs in blocks of {self.block} allow "
                f"1 to {self.block_columns}"
            )
        self.indices()

    @property
    def block_rows(self) -> int:
        return -(-self.outputs // self.block)

    @property
    def block_columns(self) -> int:
        return -(-self.inputs // self.block)

    @property
    def fan_in(self) -> int:
        return self.columns.shape[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of ``values``."""
        return self.block_rows, self.fan_in, self.block, self.block

    def indices(self) -> Indices:
        """The index lists, made anew when ``columns`` has changed since.

        Raises:
            LayoutError: a column outside the layer, or twice in one row.
        """
        if self._indices is None or self._version != self.columns._version:
            self._check_columns()
            rows = torch.arange(self.block_rows, device=self.columns.device)
            rows = rows.unsqueeze(1).expand(-1, self.fan_in).flatten()
            self._indices = _indices(rows, self.columns.flatten().long(), self.block_rows, self.block_columns)
            self._version = self.columns._version
            self._derived.clear()
        return self._indices

    def derived(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` makes of this layout under ``key``, made anew when ``columns`` has changed since."""
        self.indices()
        if key not in self._derived:
            self._derived[key] = make()
        found: T = self._derived[key]
        return found

    @property
    def bytes(self) -> int:
        """Of ``columns`` and the index lists."""
        found = self.indices()
        lists = [tensor for each in (found.forward, found.backward) for tensor in vars(each).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.columns, found.rows, *lists))

    def table(self) -> Tensor:
        """bool [block rows, block columns]: which blocks are active."""
        found = torch.zeros(self.block_rows, self.block_columns, dtype=torch.bool, device=self.columns.device)
        return found.scatter_(1, self.columns.long(), True)

    def mask(self) -> Tensor:
        """bool [outputs, inputs]: which weights are active."""
        whole = self.table().repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)
        return whole[: self.outputs, : self.inputs]

    def to_dense(self, values: Tensor) -> Tensor:
        """The weight [outputs, inputs], zero where nothing is active."""
        whole = values.new_zeros(self.block_rows, self.block, self.block_columns, self.block)
        rows = self.indices().rows.long()
        whole[rows, :, self.columns.flatten().long()] = values.reshape(-1, self.block, self.block)
        return whole.reshape(self.block_rows * self.block, -1)[: self.outputs, : self.inputs]

    def from_dense(self, weight: Tensor) -> Tensor:
        """The active blocks of ``weight`` [outputs, inputs], padded with zeros: ``values`` of this layout."""
        if weight.shape != (self.outputs, self.inputs):
            raise LayoutError(
                f"a weight of shape {list(weight.shape)} for a layout of {self.outputs} × {self.inputs}: "
                "give the weight that this layout was made for"
            )
        below = self.block_rows * self.block - self.outputs
        right = self.block_columns * self.block - self.inputs
        padded = torch.nn.functional.pad(weight, (0, right, 0, below))
        whole = padded.reshape(self.block_rows, self.block, self.block_columns, self.block)
        return whole[self.indices().rows.long(), :, self.columns.flatten().long()].reshape(self.shape)

    def _check_columns(self) -> None:
        low, high = self.columns.aminmax()
        if is_fake(low):  # in a rehearsal, where there are no numbers to look at
            return
        if low < 0 or high >= self.block_columns:
            raise LayoutError(
                f"columns holds {int(low if low < 0 else high)}, but {self.inputs} inputs in blocks of {self.block} "
                f"are the block columns 0 to {self.block_columns - 1}"
            )
        counted = torch.zeros(self.block_rows, self.block_columns, dtype=torch.int32, device=self.columns.device)
        counted.scatter_add_(1, self.columns.long(), torch.ones_like(self.columns))
        if counted.max() > 1:
            row, column = divmod(int(counted.argmax()), self.block_columns)
            raise LayoutError(
                f"block row {row} names block column {column} {int(counted.max())} times: once is allowed"
            )


def layout_of_table(table: Tensor, outputs: int, inputs: int, block: int) -> BlockLayout:
    """The layout of the active blocks of ``table`` (bool [block rows, block columns]), columns ascending in each row.

    Raises:
        LayoutError: a table of another shape, or rows with different numbers of active blocks.
    """
    expected = (-(-outputs // block), -(-inputs // block))
    if table.dtype != torch.bool or tuple(table.shape) != expected:
        raise LayoutError(
            f"a table of blocks of a layer {outputs} × {inputs} in blocks of {block} is bool {list(expected)}, "
            f"not {_what(table)}"
        )
    counts = table.sum(1)
    if counts.min() != counts.max():
        raise LayoutError(
            f"block row {int(counts.argmin())} has {int(counts.min())} active blocks and block row "
            f"{int(counts.argmax())} has {int(counts.max())}: this format needs as many in every row"
        )
    columns = table.nonzero()[:, 1].reshape(len(table), -1).int()
    return BlockLayout(outputs, inputs, block, columns)


@dataclass
class CsrLayout:
    """Single active weights: those of output o are ``values[pointers[o] : pointers[o + 1]]``. A row may be empty."""

    outputs: int
    inputs: int
    pointers: Tensor
    """int32 [outputs + 1], ascending from 0."""
    columns: Tensor
    """int32 [active]: the input of each weight, ascending within a row."""
    _indices: Indices | None = field(default=None, init=False, repr=False, compare=False)
    _versions: tuple[int, int] = field(default=(-1, -1), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, given in (("pointers", self.pointers), ("columns", self.columns)):
            if given.dtype != torch.int32 or given.device.type != "cpu" or given.dim() != 1:
                raise LayoutError(f"{name} must be a flat int32 tensor on the CPU, not {_what(given)}")
        if self.outputs < 1 or self.inputs < 1 or len(self.pointers) != self.outputs + 1:
            raise LayoutError(
                f"pointers has {len(self.pointers)} entries for a layer of {self.outputs} × {self.inputs}: "
                f"it needs one more than there are outputs, {self.outputs + 1}, and sizes of at least 1"
            )
        self.indices()

    @property
    def shape(self) -> tuple[int]:
        """That of ``values``."""
        return (len(self.columns),)

    def indices(self) -> Indices:
        """The index lists, made anew when ``pointers`` or ``columns`` has changed since.

        Raises:
            LayoutError: pointers that do not ascend to the number of columns, or columns that do not ascend or lie
                outside the layer.
        """
        versions = (self.pointers._version, self.columns._version)
        if self._indices is None or self._versions != versions:
            rows = self._checked_rows()
            self._indices = _indices(rows, self.columns.long(), self.outputs, self.inputs)
            self._versions = versions
        return self._indices

    def mask(self) -> Tensor:
        """bool [outputs, inputs]: which weights are active."""
        found = torch.zeros(self.outputs, self.inputs, dtype=torch.bool)
        found[self.indices().rows.long(), self.columns.long()] = True
        return found

    def to_dense(self, values: Tensor) -> Tensor:
        """The weight [outputs, inputs], zero where nothing is active."""
        whole = values.new_zeros(self.outputs, self.inputs)
        whole[self.indices().rows.long(), self.columns.long()] = values
        return whole

    def from_dense(self, weight: Tensor) -> Tensor:
        """The active weights of ``weight`` [outputs, inputs]."""
        if weight.shape != (self.outputs, self.inputs):
            raise LayoutError(
                f"a weight of shape {list(weight.shape)} for a layout of {self.outputs} × {self.inputs}: "
                "give the weight that this layout was made for"
            )
        return weight[self.indices().rows.long(), self.columns.long()]

    def _checked_rows(self) -> Tensor:
        counts = self.pointers.long().diff()
        if self.pointers[0] != 0 or (counts < 0).any() or self.pointers[-1] != len(self.columns):
            raise LayoutError(
                f"pointers must ascend from 0 to the number of columns, {len(self.columns)}; they begin "
                f"with {int(self.pointers[0])}, end with {int(self.pointers[-1])} and have "
                f"{int((counts < 0).sum())} descents"
            )
        rows = torch.arange(self.outputs).repeat_interleave(counts)
        if len(self.columns) and not 0 <= self.columns.min() <= self.columns.max() < self.inputs:
            raise LayoutError(
                f"columns holds {int(self.columns.min())} to {int(self.columns.max())}, but the layer has the inputs "
                f"0 to {self.inputs - 1}"
            )
        ids = rows * self.inputs + self.columns.long()
        if (ids.diff() <= 0).any():
            at = int((ids.diff() <= 0).nonzero()[0]) + 1
            raise LayoutError(
                f"row {int(rows[at])}: column {int(self.columns[at])} comes after column {int(self.columns[at - 1])}: "
                "columns must ascend within a row, each once"
            )
        return rows


def layout_of_mask(mask: Tensor) -> CsrLayout:
    """The layout of the active weights of ``mask`` (bool [outputs, inputs])."""
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise LayoutError(f"a mask is bool [outputs, inputs], not {_what(mask)}")
    rows, columns = mask.nonzero(as_tuple=True)
    return CsrLayout(mask.shape[0], mask.shape[1], pointers_of(rows, mask.shape[0]), columns.int())


def _what(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
