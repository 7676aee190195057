"""Which units the rows and columns of a model's matrices belong to, and how the units are dealt to M narrower models.

Units are what a model can be made narrower by: hidden units of feed-forward layers, attention heads (with grouped
queries a key/value head and the query heads that read it), channels, and the hidden units of the residual stream.
Units that must be kept or left together, since a sum or a norm ties them (the residual stream of a LLaMA; the channels
of a ResNet from one change of shape to the next), are one *space*, dealt once. A part keeps the weights between two of
its own units; a weight between units of two parts belongs to nobody, and one that knows units at one end only (a row of
the first layer, a column of the last) belongs to whom that end does. What has no unit at all, the bias of an output
layer, every part has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.accounting import Shapes
from nt_pretrain.models.network import vision_of
from nt_pretrain.models.vision import CHANNELS

Order = Literal["sequential", "interleaved"]
Residual = Literal["split", "whole"]
Owners = dict[str, Tensor]
"""Of every space the part that each unit belongs to, int64 [units]."""


@dataclass(frozen=True)
class Axis:
    """Units along one dimension of a tensor: unit u has the places from u * width to (u + 1) * width."""

    space: str
    width: int = 1


@dataclass(frozen=True)
class Site:
    """One tensor, seen as a matrix [first dimension, second dimension x kernel].

    Attributes:
        rows: units along its first dimension; None: every part has all of it.
        columns: the same of the second dimension.
        leads_to: the axis whose units these are weights into; None: to none (the output layer, norms).
    """

    rows: Axis | None = None
    columns: Axis | None = None
    leads_to: Axis | None = None


def narrower(model: ModelSection, part: int, of: int, residual: Residual) -> ModelSection:
    """Part number ``part`` of ``of`` of a model with one head, a dense model of its own.

    Widths that ``of`` does not divide are spread: the first parts have one unit more. The outputs of a bottleneck's
    blocks are four times its inner channels, so there it is four more.

    Args:
        residual: of a LLaMA, whether the hidden units of the residual stream are dealt too, or each part has them all.
    """

    def own(width: int) -> int:
        return width // of + (part < width % of)

    if model.data == "rows":
        return model.model_copy(update={"widths": tuple(own(width) for width in model.widths)})
    if model.data == "pictures":
        return model.model_copy(update={"channels": tuple(own(width) for width in _channels(model))})
    kv_heads = model.kv_heads or model.attention_heads
    changes = {
        "intermediate": own(model.intermediate),
        "attention_heads": own(kv_heads) * (model.attention_heads // kv_heads),
        "kv_heads": own(kv_heads) if model.kv_heads else None,
        "head_width": model.head_dim,
        "hidden": model.hidden if residual == "whole" else own(model.hidden),
    }
    return model.model_copy(update=changes)


def undealable(model: ModelSection, of: int, residual: Residual) -> list[str]:
    """Why the units cannot be dealt to ``of`` parts, one line each, naming the option: there are too few of a kind, or
    parts would have other layers than the model.
    """
    if model.data == "rows":
        widths = {"model.widths": model.widths}
    elif model.data == "pictures":
        widths = {"model.channels": _channels(model)}
    else:
        of_heads = "model.kv_heads" if model.kv_heads else "model.attention_heads"
        widths = {"model.intermediate": (model.intermediate,), of_heads: (model.kv_heads or model.attention_heads,)}
        if residual == "split":
            widths["model.hidden"] = (model.hidden,)
    found = [
        f"{option}: {min(each)} units cannot be dealt to {of} members, each needs one; at most method.members: "
        f"{min(each)}"
        for option, each in widths.items()
        if each and min(each) < of
    ]
    if model.data == "pictures" and not found:
        parts = [_channels(narrower(model, part, of, residual)) for part in range(of)]
        expansion = 4 if model.family == "resnet50" else 1
        # A block without stride has a convolution beside it where stem and stage differ.
        beside = {stem == expansion * stage for stem, stage, *_ in [_channels(model), *parts]}
        if len(beside) > 1:
            found.append(
                f"model.channels: {list(_channels(model))} dealt to {of} members are "
                f"{[list(each) for each in parts]}: some, not all, have as many channels in the stem as after the "
                "first block; change the first two numbers"
            )
    return found


def _channels(model: ModelSection) -> tuple[int, ...]:
    return model.channels or next(usual for family, usual in CHANNELS.items() if family == model.family)


def sites_of(model: ModelSection, shapes: Shapes, residual: Residual) -> dict[str, Site]:
    """Between which units the tensors of ``shapes`` lie, those of ``model`` with one head of no blocks."""
    if model.data == "rows":
        return {name: _of_rows(name, len(model.widths)) for name in shapes}
    if model.data == "pictures":
        return _of_pictures(model)
    return {name: _of_text(name, model, Axis("residual") if residual == "split" else None) for name in shapes}


def sizes_of(sites: Mapping[str, Site], parts: list[Shapes]) -> dict[str, list[int]]:
    """Units of each space that each part, of these shapes, has."""
    sizes = {}
    for name in parts[0]:
        for dim, axis in enumerate((sites[name].rows, sites[name].columns)):
            if axis is not None:
                sizes[axis.space] = [shapes[name][dim] // axis.width for shapes in parts]
    return sizes


SCALE = 2.0**32


def incoming(values: Tensor, site: Site, kernel: int) -> Tensor:
    """Score of the units that the matrix ``values`` [rows, columns x kernel] leads to: the L1 norm of their weights.

    In fixed point (int64, multiples of 2**-32; larger weights than 256 count as that), so that sums do not depend on
    their order, nor on who adds them up.
    """
    assert site.leads_to is not None
    size = values.double().abs_().clamp_(max=256.0).mul_(SCALE).round_().long()
    places = size.sum(1) if site.leads_to is site.rows else size.view(len(size), -1, kernel).sum((0, 2))
    return places.view(-1, site.leads_to.width).sum(1)


def deal(scores: Mapping[str, Tensor], sizes: Mapping[str, list[int]], order: Order) -> Owners:
    """Deal the units of each space to parts of ``sizes``, every unit to exactly one.

    Args:
        scores: int64 [units] of each space; equal ones are told apart by their place.
        order: ``sequential``: the best to the first part, the best of the remainder to the second, and so on;
            ``interleaved``: by turns, the unit of rank r to part r mod M, while it has room.
    """
    owners = {}
    for space, score in scores.items():
        counts = sizes[space]
        if order == "sequential":
            turns = [part for part, count in enumerate(counts) for _ in range(count)]
        else:
            turns = [part for turn in range(max(counts)) for part, count in enumerate(counts) if turn < count]
        assert len(turns) == len(score), f"{space}: {counts} of {len(score)} units"
        ranking = score.argsort(descending=True, stable=True)
        owners[space] = torch.empty(len(score), dtype=torch.int64, device=score.device)
        owners[space][ranking] = torch.tensor(turns, device=score.device)
    return owners


def places(axis: Axis | None, size: int, owners: Owners, part: int, device: torch.device) -> Tensor:
    """Places along a dimension of ``size`` of the parent that ``part`` has, ascending (int64)."""
    if axis is None:
        return torch.arange(size, device=device)
    units = (owners[axis.space] == part).nonzero()[:, 0].to(device)
    return (units[:, None] * axis.width + torch.arange(axis.width, device=device)).reshape(-1)


def kernel_of(shape: tuple[int, ...]) -> int:
    """Weights between one input and one output."""
    return math.prod(shape[2:])


def _of_text(name: str, model: ModelSection, residual: Axis | None) -> Site:
    path, layer = name.removesuffix(".weight").rsplit(".", 1)
    if layer == "embedding":
        return Site(columns=residual, leads_to=residual)
    if layer == "output":
        return Site(columns=residual)
    if layer.endswith("norm"):
        return Site(rows=residual)
    queries = model.attention_heads // (model.kv_heads or model.attention_heads)
    width = {"query": queries * model.head_dim, "out": queries * model.head_dim, "key": model.head_dim}
    inside = Axis(path, width.get(layer, model.head_dim) if path.endswith("attention") else 1)
    if layer in ("out", "down"):
        return Site(rows=residual, columns=inside, leads_to=residual)
    return Site(rows=inside, columns=residual, leads_to=inside)


def _of_rows(name: str, layers: int) -> Site:
    """Blocks are all in the trunk, each a hidden layer."""
    if name.startswith("heads."):
        return Site(columns=Axis(f"blocks.{layers - 1}")) if name.endswith(".weight") else Site()
    block = int(name.split(".")[2])
    own = Axis(f"blocks.{block}")
    if name.endswith(".bias"):
        return Site(rows=own)
    return Site(own, Axis(f"blocks.{block - 1}") if block else None, own)


def _of_pictures(model: ModelSection) -> dict[str, Site]:
    vision = vision_of(model)
    stream = Axis("stem")
    found = {"trunk.stem.conv.weight": Site(stream, None, stream)}
    if not vision.is_wide:
        found |= _norm("trunk.stem.norm", stream)
    for number, shape in enumerate(vision.blocks):
        block, before = f"trunk.blocks.{number}", stream
        if shape.changes_shape:
            stream = Axis(f"blocks.{number}.out")
        if vision.family == "resnet50":
            convolutions = ["conv1x1_first", "conv3x3", "conv1x1_last"]
        else:
            convolutions = ["conv3x3_first", "conv3x3_second"]
        between = [Axis(f"blocks.{number}.{name}") for name in convolutions[:-1]]
        for name, rows, columns in zip(convolutions, [*between, stream], [before, *between], strict=True):
            found[f"{block}.{name}.weight"] = Site(rows, columns, rows)
        if vision.is_wide:  # norms come before the convolutions
            norms = {"first_norm": before, "second_norm": between[0]}
        else:
            norms = dict(zip(("first_norm", "second_norm"), between, strict=False)) | {"last_norm": stream}
        beside = "downsample" if vision.is_wide else "downsample.conv"
        if shape.changes_shape:
            found[f"{block}.{beside}.weight"] = Site(stream, before, stream)
            norms |= {} if vision.is_wide else {"downsample.norm": stream}
        for name, axis in norms.items():
            found |= _norm(f"{block}.{name}", axis)
    if vision.is_wide:
        found |= _norm("heads.0.norm", stream)
    return found | {"heads.0.output.weight": Site(columns=stream), "heads.0.output.bias": Site()}


def _norm(name: str, axis: Axis) -> dict[str, Site]:
    """Gain, bias and running statistics."""
    return {f"{name}.{tensor}": Site(rows=axis) for tensor in ("weight", "bias", "running_mean", "running_var")}
