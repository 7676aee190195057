"""Hidden units whose output can be exactly 0 for every input: where each is seen, and its weights in and out.

They are those behind a ReLU that follows one matrix or kernel, or the norm behind it. Sums do not count: a ReLU behind
a residual sum, or behind a norm of one, has no weights of its own whose removal would raise its input.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.llama import ReluFeedForward
from nt_pretrain.models.mlp import MlpHead, MlpTrunk
from nt_pretrain.models.network import build
from nt_pretrain.models.resnet import BasicBlock, Bottleneck, Stem
from nt_pretrain.models.wide_resnet import WideBlock


@dataclass(frozen=True)
class ReluUnits:
    """The units of one layer.

    Attributes:
        site: path of the module whose output, where it is positive, is the units' activity: ReLU follows at once.
        incoming: name of the weight of which row i leads to unit i.
        outgoing: name of the weight of which column i leads from unit i; empty where they go to
            several layers or to another module.
        count: of units.
        axis: of the site's output, along which the units lie.
    """

    site: str
    incoming: str
    outgoing: str
    count: int
    axis: int


def relu_units(model: nn.Module) -> list[ReluUnits]:
    """All such units of ``model`` (of which heads held elsewhere are missing), in the order of its modules."""
    found = []
    for path, module in model.named_modules():
        for site, incoming, outgoing in _inside(module):
            units, axis = _rows_of(module.get_submodule(incoming))
            leads_to = f"{path}.{outgoing}.weight" if outgoing else ""
            found.append(ReluUnits(f"{path}.{site}", f"{path}.{incoming}.weight", leads_to, units, axis))
    return found


def units_of(model: ModelSection) -> list[ReluUnits]:
    """The same of the whole model of a configuration, all heads included, without allocating it."""
    with torch.device("meta"):
        return relu_units(build(model))


def _inside(module: nn.Module) -> list[tuple[str, str, str]]:
    """Site, incoming and outgoing layer of the units of one module, by the names of its parts."""
    if isinstance(module, ReluFeedForward):
        return [("up", "up", "down")]
    if isinstance(module, MlpTrunk | MlpHead):
        layers = [f"blocks.{number}.linear" for number in range(len(module.blocks))]
        # The trunk's last units go to all heads.
        last = "output" if isinstance(module, MlpHead) else ""
        return [(layer, layer, after) for layer, after in itertools.pairwise([*layers, last])]
    if isinstance(module, Stem):
        return [("norm", "conv", "")]
    if isinstance(module, BasicBlock):
        return [("first_norm", "conv3x3_first", "conv3x3_second")]
    if isinstance(module, Bottleneck):
        return [("first_norm", "conv1x1_first", "conv3x3"), ("second_norm", "conv3x3", "conv1x1_last")]
    if isinstance(module, WideBlock):
        return [("second_norm", "conv3x3_first", "conv3x3_second")]
    return []


def _rows_of(layer: nn.Module) -> tuple[int, int]:
    """Units that ``layer`` leads to, and the axis of its output along which they lie."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, 1
    assert isinstance(layer, nn.Linear), f"{type(layer).__name__} has no rows that are units"
    return layer.out_features, -1
