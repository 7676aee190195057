"""An exponential moving average of the weights (Polyak and Juditsky 1992; with a decay as in timm's ModelEma).

It lies beside the shards, in fp32 also where weights are bf16, since 1 - decay of them would be rounded away there. It
is as sparse as the model: a topology update zeroes it where it zeroes the weight (:mod:`nt_pretrain.sparsity.update`),
and elsewhere zeros average to zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nt_pretrain.parallel.shard import reshard


@dataclass
class Average:
    """Moving averages of some tensors.

    Attributes:
        live: the tensors that are averaged, by name: local shards and buffers, which training changes in place.
        values: their averages, of the same shapes, in fp32 or wider.
    """

    live: dict[str, Tensor]
    decay: float
    values: dict[str, Tensor]

    @classmethod
    def of(cls, tensors: dict[str, Tensor], decay: float) -> Average:
        """Averages that start as ``tensors`` are. Whole numbers, as BatchNorm counts its batches, are left out."""
        live = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
        values = {name: tensor.to(_wide(tensor), copy=True) for name, tensor in live.items()}
        return cls(live, decay, values)

    def update(self) -> None:
        """After a step: average = decay average + (1 - decay) tensor, element by element."""
        alike = [name for name, tensor in self.live.items() if self.values[name].dtype == tensor.dtype]
        if alike:
            averages, tensors = [self.values[name] for name in alike], [self.live[name] for name in alike]
            torch._foreach_lerp_(averages, tensors, 1.0 - self.decay)
        for name in self.live.keys() - set(alike):
            self.values[name].lerp_(self.live[name].to(self.values[name].dtype), 1.0 - self.decay)

    def restart(self) -> None:
        """Start again from the tensors as they are now."""
        for name, tensor in self.live.items():
            self.values[name].copy_(tensor)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The tensors hold their averages, rounded to their dtypes; afterwards what they held before, bit for bit."""
        before = {name: tensor.clone() for name, tensor in self.live.items()}
        try:
            for name, tensor in self.live.items():
                tensor.copy_(self.values[name])
            yield
        finally:
            for name, tensor in self.live.items():
                tensor.copy_(before[name])


@contextmanager
def swapped(average: Average, model: nn.Module) -> Iterator[None]:
    """The model computes with the averages of its weights; afterwards with the weights again.

    Nothing may be trained or saved meanwhile.
    """
    # What was gathered of the weights, or then of the averages, must not be used for the other.
    reshard(model)
    with average.swapped():
        try:
            yield
        finally:
            reshard(model)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
