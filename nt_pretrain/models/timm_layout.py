"""State dicts in the layout of timm's ResNets: saved from a trunk and one head, loaded into a trunk and all heads.

timm's resnet18, resnet34 and resnet50 (github.com/huggingface/pytorch-image-models) have the same convolutions, norms
and paddings as the networks here, under the names of torchvision: ``conv1``, ``bn1``, ``layer1.0.conv1``,
``layer1.0.downsample.0``, ..., ``fc``. Running statistics of norms go along.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nt_pretrain.models.groups import part_of
from nt_pretrain.models.vision import VisionModel, build_vision

_BOTTLENECK = {"conv1x1_first": "conv1", "conv3x3": "conv2", "conv1x1_last": "conv3", "last_norm": "bn3"}
_BASIC = {"conv3x3_first": "conv1", "conv3x3_second": "conv2", "last_norm": "bn2"}
_BOTH = {
    "first_norm": "bn1", "second_norm": "bn2", "downsample.conv": "downsample.0", "downsample.norm": "downsample.1",
}  # fmt: skip
_OUTSIDE = {"stem.conv": "conv1", "stem.norm": "bn1", "output": "fc"}


def timm_name(name: str, model: VisionModel) -> str:
    """timm's name for the tensor ``name`` of ``build_vision(model).state_dict()``; that of a head is every head's.

    Raises:
        ValueError: timm has no such network.
    """
    if model.is_for_small_pictures:
        raise ValueError(f"{model.family} has no layout in timm; resnet18, resnet34 and resnet50 have")
    part = part_of(name)
    layer, _, tensor = name.removeprefix(f"{part}.").rpartition(".")
    if layer in _OUTSIDE:
        return f"{_OUTSIDE[layer]}.{tensor}"
    _, number, layer = layer.split(".", 2)
    stage, block = _stage_and_block(int(number) + (0 if part == "trunk" else model.trunk_blocks), model)
    layers = _BOTH | (_BOTTLENECK if model.family == "resnet50" else _BASIC)
    return f"layer{stage}.{block}.{layers[layer]}.{tensor}"


def to_timm(state: Mapping[str, Tensor], model: VisionModel, *, head: int) -> dict[str, Tensor]:
    """The network of trunk and head number ``head``, of the ``state`` of ``build_vision(model)``, in timm's layout.

    Tensors are those of ``state``, not copies. A model without ``output_bias`` gets a bias of zeros, which timm's
    classifier always has.

    Raises:
        ValueError: timm has no such network, or the model no such head.
    """
    if not 0 <= head < model.heads:
        raise ValueError(f"head {head} does not exist; the model has heads 0 to {model.heads - 1}")
    own = {"trunk", f"heads.{head}"}
    found = {timm_name(name, model): tensor for name, tensor in state.items() if part_of(name) in own}
    if "fc.bias" not in found:
        found["fc.bias"] = found["fc.weight"].new_zeros(model.classes)
    return found


def from_timm(state: Mapping[str, Tensor], model: VisionModel) -> dict[str, Tensor]:
    """A state for ``build_vision(model).load_state_dict``: trunk and every head from the timm network ``state``.

    The heads share tensors of ``state``; loading copies them. They start equal: only their topologies or their data
    can part them afterwards.

    Raises:
        ValueError: tensors are missing, unknown or of another shape, or there is a bias that the model cannot hold.
    """
    with torch.device("meta"):
        wanted = build_vision(model).state_dict()
    names = {name: timm_name(name, model) for name in wanted}
    # Older files have no counter of batches, which only matters for averages without momentum.
    given = {name: torch.zeros((), dtype=torch.int64) for name in names.values() if name.endswith("batches_tracked")}
    given |= state
    if not model.output_bias and "fc.bias" in given:
        if given["fc.bias"].any():
            raise ValueError("fc.bias: the classifier given has a bias; set model.output_bias: true to keep it")
        del given["fc.bias"]
    missing = sorted(set(names.values()) - set(given))
    unknown = sorted(set(given) - set(names.values()))
    if missing or unknown:
        raise ValueError(
            f"this is no timm {model.family}: {_some('missing', missing)}{_some('unknown', unknown)}"
            "see that model.family is that of the file"
        )
    for ours, theirs in names.items():
        if given[theirs].shape != wanted[ours].shape:
            raise ValueError(
                f"{theirs}: shape {list(given[theirs].shape)}, but {ours} of the model has {list(wanted[ours].shape)}; "
                "model.classes and model.small_stem must be those of the file"
            )
    return {ours: given[theirs] for ours, theirs in names.items()}


def _stage_and_block(number: int, model: VisionModel) -> tuple[int, int]:
    """Stage (from 1) and place in it (from 0) of block ``number`` of the whole network."""
    shapes = model.blocks[: number + 1]
    first = next(i for i, shape in enumerate(shapes) if shape.inside == shapes[-1].inside)
    return len({shape.inside for shape in shapes}), number - first


def _some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {kind} ({', '.join(names[:3])}{more}); " if names else ""
