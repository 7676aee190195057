"""What a network for pictures costs: multiply-adds of a picture by group, and what it saves for its backward.

Both come from one forward pass of the network itself on the meta device, without storage or arithmetic, so that they
cannot disagree with what is trained. Passes are remembered: plan, costs and meter of a run ask for the same ones, and
each takes as long as some training steps of a small network. Parameters are counted by
:func:`nt_pretrain.models.accounting.account`, whose ``per_token`` means nothing here: a convolution's weight is used
once for each place of its output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nt_pretrain.models.accounting import Count, Shapes
from nt_pretrain.models.groups import GROUPS, Group, group_of, part_of
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.vision import VisionModel, build_vision
from nt_pretrain.sparsity.budget import LayerBudget


@dataclass(frozen=True)
class PictureCost:
    """Multiply-adds of one picture on its way through trunk and all heads, forward: all, and those of active weights.

    Norms, activations and pooling are left out, as is usual.

    Attributes:
        by_group: stem, conv1x1, conv3x3, downsample, output.
        by_part: ``trunk`` (absent in a deep ensemble), ``heads.0``, ``heads.1``, ...
    """

    by_group: dict[Group, Count]
    by_part: dict[str, Count]

    @property
    def all(self) -> Count:
        return sum(self.by_part.values(), Count())


@dataclass(frozen=True)
class SavedElements:
    """Elements of the compute dtype that one picture's forward pass keeps for the backward, weights excluded.

    Attributes:
        trunk: of the trunk with its output, kept while the heads run; the picture itself in a deep ensemble.
        head: of one head. Heads run one after another, so one counts.
        largest_map: of the largest map that goes into a block, or comes out of the stem.
    """

    trunk: int
    head: int
    largest_map: int


def vision_shapes(model: VisionModel) -> Shapes:
    """Shape of every parameter by name, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in build_vision(model).named_parameters()}


@lru_cache(maxsize=64)
def output_places(model: VisionModel, picture_size: int) -> Mapping[str, int]:
    """How often each convolution or classifier weight is used for a square picture: places (y, x) of its output, of
    every member that shares it.
    """
    places: dict[str, int] = {}
    with torch.device("meta"):
        network = build_vision(model)
        handles = []
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def count(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, key: str = f"{name}.weight") -> None:
                    places[key] = math.prod(out.shape[2:]) * (len(out) // 2)

                handles.append(module.register_forward_hook(count))
        with torch.no_grad():
            hidden = network.trunk_output(torch.empty(2, 3, picture_size, picture_size), None)
            for head in network.heads.values():
                head(hidden, None)
    return MappingProxyType(places)


def picture_cost(model: VisionModel, picture_size: int, budgets: dict[str, LayerBudget]) -> PictureCost:
    """Multiply-adds of one square picture of ``picture_size`` pixels a side; weights without a budget are dense."""
    shapes, places = vision_shapes(model), output_places(model, picture_size)
    counts = {}
    for name, each in places.items():
        total = math.prod(shapes[name])
        budget = budgets.get(name)
        counts[name] = Count(total * each, (total if budget is None else budget.active * budget.unit**2) * each)
    by_group: dict[Group, Count] = {}
    by_part: dict[str, Count] = {}
    for name, count in counts.items():
        group, part = group_of(name), part_of(name)
        by_group[group] = by_group.get(group, Count()) + count
        by_part[part] = by_part.get(part, Count()) + count
    return PictureCost({group: by_group[group] for group in GROUPS if group in by_group}, by_part)


def flops_per_picture(cost: Count) -> Count:
    """Floating point operations of training on one picture: 2 a multiply-add, once forward and twice backward."""
    return Count(6 * cost.total, 6 * cost.active)


@lru_cache(maxsize=64)
def saved_elements(model: VisionModel, picture_size: int, *, device: str = "meta") -> SavedElements:
    """What the network saves for its backward for one square picture: one training forward pass, counted.

    Each storage counts once, as fp32 elements (the int64 places of the stem's pooling as two each). Vectors of a norm's
    statistics are left out, and what convolution libraries keep for themselves.

    Args:
        device: "meta" needs neither memory nor arithmetic; another one really allocates, to check.
    """
    # One picture alone would leave a norm without a variance where the map is a single place.
    batch = 2
    with torch.device(device):
        network = build_vision(model)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        trunk, head = _Saved(weights), _Saved(weights)
        pictures = torch.zeros(batch, 3, picture_size, picture_size)
        with trunk:
            hidden = network.trunk_output(pictures, None)
        trunk.add(hidden)
        head.known.add(hidden.untyped_storage()._cdata)
        with head:
            loss = network.heads["0"](hidden.detach(), None, torch.zeros(batch, dtype=torch.int64))
        del loss
    return SavedElements(trunk.elements // batch, head.elements // batch, max(blocks_in(model, picture_size)))


def blocks_in(model: VisionModel, picture_size: int) -> list[int]:
    """Elements of one picture's map that goes into each block on the path of a head, first to last."""
    found = []
    with torch.device("meta"):
        network = build_vision(model)
        for part in _path(network):
            for block in part.blocks:
                block.register_forward_pre_hook(lambda _, given: found.append(given[0].numel() // 2))
        with torch.no_grad():
            pictures = torch.empty(2, 3, picture_size, picture_size)
            network.heads["0"](network.trunk_output(pictures, None), None)
    return found


def _path(network: MultiHead) -> list[Any]:
    """Trunk, if there is one, and the first head."""
    return [part for part in (network.trunk, network.heads["0"]) if part is not None]


def recomputed_elements(model: VisionModel, picture_size: int) -> SavedElements:
    """As :func:`saved_elements` where each block keeps its input only, and what it would save exists for one block at
    a time while it is computed again.
    """
    inputs, whole = blocks_in(model, picture_size), saved_elements(model, picture_size)
    trunk, head = inputs[: model.trunk_blocks], inputs[model.trunk_blocks :]
    saved = _saved_by_blocks(model, picture_size)
    again = [max(part, default=0) for part in (saved[: model.trunk_blocks], saved[model.trunk_blocks :])]
    # What is saved outside the blocks (stem, last norm, features) stays.
    rest = [whole.trunk - sum(saved[: model.trunk_blocks]), whole.head - sum(saved[model.trunk_blocks :])]
    return SavedElements(rest[0] + sum(trunk) + again[0], rest[1] + sum(head) + again[1], whole.largest_map)


def _saved_by_blocks(model: VisionModel, picture_size: int) -> list[int]:
    """Elements of one picture that each block on the path of a head saves for its backward beside its input."""
    found: list[int] = []
    with torch.device("meta"):
        network = build_vision(model)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        x = torch.zeros(2, 3, picture_size, picture_size)
        for part in _path(network):
            x = part.stem(x) if hasattr(part, "stem") else x
            for block in part.blocks:
                x = x.detach().requires_grad_()
                saved = _Saved({*weights, x.untyped_storage()._cdata})
                with saved:
                    x = block(x)
                found.append(saved.elements // 2)
    return found


class _Saved(saved_tensors_hooks):
    """Counts the storages that autograd saves while it is entered; ``known`` ones do not count."""

    def __init__(self, known: set[int]) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.known = set(known)
        self.elements = 0
        # Alive as long as the count: a freed storage's address would come back as another one's.
        self.kept: list[Tensor] = []

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.dim() >= 2:
            self.add(tensor)
        return tensor

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.elements += storage.nbytes() // 4
            self.kept.append(tensor)
