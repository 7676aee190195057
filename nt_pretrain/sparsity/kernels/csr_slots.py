"""Where single active weights are when each of them has a slot of its own: CSR whose values lie in any order.

A topology update gives the slot of a dropped weight to a grown one, so values, gradients and moments stay where they
are, and so does their cut over ranks. Kernels read rows in order and find the value of each weight by its slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nt_pretrain.sparsity.kernels.layout import LayoutError, Lists, pointers_of


@dataclass(frozen=True)
class CsrIndices:
    """What the products read: lists by output, inputs ascending, and the same by input, outputs ascending."""

    forward: Lists
    backward: Lists


@dataclass
class CsrSlots:
    """Single active weights of a layer [outputs, inputs]: ``values[s]`` is weight number ``ids[s]``."""

    outputs: int
    inputs: int
    ids: Tensor
    """int64 [active]: output * inputs + input of the weight in each slot, distinct; changed in place by an update."""
    _indices: CsrIndices | None = field(default=None, init=False, repr=False, compare=False)
    _version: int = field(default=-1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.device.type != "cpu" or self.ids.dim() != 1:
            raise LayoutError(
                f"ids must be a flat int64 tensor on the CPU, not {str(self.ids.dtype).removeprefix('torch.')} "
                f"{list(self.ids.shape)} on {self.ids.device}"
            )
        if self.outputs < 1 or self.inputs < 1 or len(self.ids) >= 1 << 31:
            raise LayoutError(
                f"a layer of {self.outputs} × {self.inputs} with {len(self.ids):,} active weights: sizes must be at "
                "least 1, and the kernels count to 2^31"
            )
        self.indices()

    @property
    def shape(self) -> tuple[int]:
        """That of ``values``."""
        return (len(self.ids),)

    def indices(self) -> CsrIndices:
        """The lists, made anew when ``ids`` has changed since.

        Raises:
            LayoutError: a number outside the layer, or one that two slots name.
        """
        if self._indices is None or self._version != self.ids._version:
            self._indices = self._made()
            self._version = self.ids._version
        return self._indices

    def mask(self) -> Tensor:
        """bool [outputs, inputs]: which weights are active."""
        found = torch.zeros(self.outputs * self.inputs, dtype=torch.bool)
        return found.index_fill_(0, self.ids, True).view(self.outputs, self.inputs)

    def to_dense(self, values: Tensor) -> Tensor:
        """The weight [outputs, inputs], zero where nothing is active."""
        whole = values.new_zeros(self.outputs * self.inputs)
        return whole.index_copy(0, self.ids, values).view(self.outputs, self.inputs)

    def from_dense(self, weight: Tensor) -> Tensor:
        """The active weights of ``weight`` [outputs, inputs], by slot."""
        if weight.shape != (self.outputs, self.inputs):
            raise LayoutError(
                f"a weight of shape {list(weight.shape)} for a layout of {self.outputs} × {self.inputs}: "
                "give the weight that this layout was made for"
            )
        return weight.reshape(-1).index_select(0, self.ids)

    def _made(self) -> CsrIndices:
        ordered, slots = torch.sort(self.ids)
        if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < self.outputs * self.inputs:
            raise LayoutError(
                f"ids holds {int(ordered[0])} to {int(ordered[-1])}, but a layer of {self.outputs} × {self.inputs} "
                f"has the weights 0 to {self.outputs * self.inputs - 1}"
            )
        same = ordered[1:] == ordered[:-1]
        if bool(same.any()):
            at = int(same.nonzero()[0])
            raise LayoutError(f"slots {int(slots[at])} and {int(slots[at + 1])} both hold weight {int(ordered[at])}")
        rows = torch.div(ordered, self.inputs, rounding_mode="floor")
        columns = (ordered - rows * self.inputs).to(torch.int32)
        rows = rows.to(torch.int32)
        by_column = torch.sort(columns, stable=True).indices
        slots = slots.to(torch.int32)
        return CsrIndices(
            Lists(pointers_of(rows, self.outputs), columns, slots),
            Lists(pointers_of(columns, self.inputs), rows[by_column], slots[by_column]),
        )


def slots_of_mask(mask: Tensor) -> CsrSlots:
    """The active weights of ``mask`` (bool [outputs, inputs]), their numbers ascending from slot to slot.

    Raises:
        LayoutError: no such mask.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise LayoutError(f"a mask is bool [outputs, inputs], not {mask.dtype} {list(mask.shape)}")
    return CsrSlots(mask.shape[0], mask.shape[1], mask.reshape(-1).nonzero().view(-1))
