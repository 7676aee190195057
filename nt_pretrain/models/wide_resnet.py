"""The parts of a WideResNet for small pictures: pre-activation blocks. Plain modules.

Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146). Norm and ReLU come before each convolution; a block that
changes the number of channels starts its 1x1 shortcut after the first of them. Between blocks nothing is normalised,
so the last norm belongs to whoever holds the classifier.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nt_pretrain.models.resnet import BlockShape, conv


class WideStem(nn.Module):
    """Pictures [B, 3, Y, X] to a few channels at full size, without a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(3, channels, 3)

    def forward(self, pictures_BCYX: Tensor) -> Tensor:
        return self.conv(pictures_BCYX)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each behind its norm and ReLU."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(shape.before)
        self.conv3x3_first = conv(shape.before, shape.inside, 3, shape.stride)
        self.second_norm = nn.BatchNorm2d(shape.inside)
        self.conv3x3_second = conv(shape.inside, shape.after, 3)
        self.downsample = conv(shape.before, shape.after, 1, shape.stride) if shape.changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(x), inplace=True)
        beside = x if self.downsample is None else self.downsample(y)
        y = F.relu(self.second_norm(self.conv3x3_first(y)), inplace=True)
        return self.conv3x3_second(y) + beside
