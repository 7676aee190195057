"""The parts of a ResNet: stems, the two residual blocks, and the list of blocks of each depth. Plain modules.

Sources: He et al. 2015 (arXiv 1512.03385); "v1.5" puts the stride of a bottleneck into its 3x3 convolution (Goyal et
al. 2017, arXiv 1706.02677). Names of convolutions say their kernel, so that a weight's group is read from its name
(:mod:`nt_pretrain.models.groups`). Shape letters: B pictures, C channels, Y and X height and width.

Weights keep torch's contiguous layout whatever the layout of the pictures: topologies number weights by their place in
memory. Convolutions run channels_last when the pictures are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockShape:
    """One residual block: channels that come in, inside, and go out; stride in height and width."""

    before: int
    inside: int
    after: int
    stride: int

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.before != self.after


def block_shapes(stages: tuple[int, ...], widths: tuple[int, ...], before: int, expansion: int) -> list[BlockShape]:
    """Blocks of a network whose stage s has ``stages[s]`` blocks of ``widths[s]`` channels inside and ``expansion``
    times as many at the end. All stages but the first halve height and width in their first block.
    """
    blocks = []
    for stage, (count, width) in enumerate(zip(stages, widths, strict=True)):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(BlockShape(before, width, width * expansion, stride))
            before = width * expansion
    return blocks


def conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width but for its stride (odd kernels)."""
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


class Stem(nn.Module):
    """Pictures [B, 3, Y, X] to the first channels: 7x7 convolution and pooling, a quarter of the size; or, for small
    pictures, a 3x3 convolution at full size.
    """

    def __init__(self, channels: int, is_small: bool) -> None:
        super().__init__()
        self.is_small = is_small
        self.conv = conv(3, channels, 3) if is_small else conv(3, channels, 7, stride=2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, pictures_BCYX: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(pictures_BCYX)), inplace=True)
        return x if self.is_small else F.max_pool2d(x, 3, stride=2, padding=1)


class Downsample(nn.Module):
    """The path beside a block whose output has another shape than its input."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.conv = conv(shape.before, shape.after, 1, shape.stride)
        self.norm = nn.BatchNorm2d(shape.after)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: ResNet-18, -20 and -34."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.conv3x3_first = conv(shape.before, shape.inside, 3, shape.stride)
        self.first_norm = nn.BatchNorm2d(shape.inside)
        self.conv3x3_second = conv(shape.inside, shape.after, 3)
        self.last_norm = nn.BatchNorm2d(shape.after)
        self.downsample = Downsample(shape) if shape.changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.conv3x3_first(x)), inplace=True)
        y = self.last_norm(self.conv3x3_second(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1: ResNet-50 v1.5."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.conv1x1_first = conv(shape.before, shape.inside, 1)
        self.first_norm = nn.BatchNorm2d(shape.inside)
        self.conv3x3 = conv(shape.inside, shape.inside, 3, shape.stride)
        self.second_norm = nn.BatchNorm2d(shape.inside)
        self.conv1x1_last = conv(shape.inside, shape.after, 1)
        self.last_norm = nn.BatchNorm2d(shape.after)
        self.downsample = Downsample(shape) if shape.changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.conv1x1_first(x)), inplace=True)
        y = F.relu(self.second_norm(self.conv3x3(y)), inplace=True)
        y = self.last_norm(self.conv1x1_last(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)
