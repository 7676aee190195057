"""One trunk, M heads: how a ResNet is cut into an ensemble, as :mod:`nt_pretrain.models.multihead` cuts a LLaMA.

The trunk is the stem and the first blocks; each head owns the last ``blocks_in_head`` blocks, its final norm where the
family has one, and its classifier. Features are averaged over the whole picture. With all blocks in the heads nothing
is shared, stems included: a deep ensemble. With one head it is an ordinary network.

Norms are plain ``nn.BatchNorm2d`` and stay fp32 under mixed precision, gains, biases and statistics, on bf16 maps: by
autocast, or by an FSDP2 unit of their own without a parameter dtype. bf16 gains beside fp32 statistics torch refuses on
a CPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nt_pretrain.models.loss import IGNORED, statistics_dtype
from nt_pretrain.models.multihead import MultiHead, TwoTrunks
from nt_pretrain.models.resnet import BasicBlock, BlockShape, Bottleneck, Stem, block_shapes
from nt_pretrain.models.sharing import ALONE, Sharing, said_by_members, share_weights
from nt_pretrain.models.wide_resnet import WideBlock, WideStem

Family = Literal["resnet18", "resnet34", "resnet50", "resnet20", "wide_resnet28_10"]

STAGES: dict[Family, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet20": (3, 3, 3),
    "wide_resnet28_10": (4, 4, 4),
}
"""Residual blocks in each stage of each family. resnet20 is that of He et al. 2015, section 4.2, for small pictures;
where its blocks change shape it has 1x1 convolutions beside them, as in the others (the paper's own: zeros).
"""
CHANNELS: dict[Family, tuple[int, ...]] = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 64, 128, 256, 512),
    "resnet20": (16, 16, 32, 64),
    "wide_resnet28_10": (16, 160, 320, 640),
}
"""Channels of the stem, and inside the blocks of each stage."""


@dataclass(frozen=True)
class VisionModel:
    """A network for pictures, cut into one trunk and M heads.

    Attributes:
        family: which network.
        classes: of the classifier.
        heads: M, the heads of the ensemble. 1 is an ordinary single model.
        blocks_in_head: blocks each head owns. 0: classifier (and final norm) only; all: a deep ensemble, stems too.
        head_slim: channels of the blocks of a head are divided by it.
        trunks: 1, or 2 side by side, of which heads read both.
        small_stem: a 3x3 convolution at full size instead of 7x7 with stride and pooling: for pictures of 32 or 64
            pixels. resnet20 and WideResNet always have one.
        output_bias: the classifier has a bias (timm's has; NeuroTrails' ResNets have none).
        zero_last_norm: the last gain of each residual block starts at 0, so that blocks start as the identity (Goyal et
            al. 2017, arXiv 1706.02677). A WideResNet block has no norm at its end.
        label_smoothing: share of the target's weight spread over all classes, in the training loss.
        channels: of the stem, and inside the blocks of each stage; None: those of the family, :data:`CHANNELS`.
        sharing: how members share the weights of one head.

    Raises:
        ValueError: values that no network can have, with those that it can; a line for each.
    """

    family: Family = "resnet50"
    classes: int = 1000
    heads: int = 1
    blocks_in_head: int = 0
    small_stem: bool = False
    output_bias: bool = False
    zero_last_norm: bool = False
    label_smoothing: float = 0.0
    channels: tuple[int, ...] | None = None
    sharing: Sharing = ALONE
    head_slim: int = 1
    trunks: int = 1

    def __post_init__(self) -> None:
        if self.family not in STAGES:
            raise ValueError(f"model.family: {self.family!r} is no network known here; known: {', '.join(STAGES)}")
        usual = CHANNELS[self.family]
        if self.channels is not None and len(self.channels) != len(usual):
            raise ValueError(
                f"model.channels: {list(self.channels)} are {len(self.channels)} numbers; {self.family} has a stem and "
                f"{len(usual) - 1} stages, by default {list(usual)}"
            )
        wrong = []
        for name, value in (("classes", self.classes), ("heads", self.heads)):
            if value < 1:
                wrong.append(f"model.{name}: {value} must be at least 1")
        if not 0 <= self.blocks_in_head <= len(self._whole):
            wrong.append(
                f"model.blocks_in_head: {self.blocks_in_head} of the {len(self._whole)} blocks of {self.family}; a "
                f"head owns 0 (only its classifier) to {len(self._whole)} (a deep ensemble)"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            wrong.append(f"train.label_smoothing: {self.label_smoothing} must be at least 0 and below 1")
        if self.is_for_small_pictures and self.small_stem:
            wrong.append(f"model.small_stem: has no effect on {self.family}, whose stem is always small; leave out")
        if self.is_wide and self.zero_last_norm:
            wrong.append(f"model.zero_last_norm: has no effect on {self.family}, whose blocks end without a norm")
        narrow = {channels for shape in self._whole for channels in (shape.inside, shape.after)}
        if wide := sorted(each for each in narrow if each % self.head_slim):
            wrong.append(f"model.head_slim: {self.head_slim} does not divide the {wide[0]} channels of {self.family}")
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def blocks(self) -> list[BlockShape]:
        """On the path of a head, first to last."""
        whole = self._whole
        if not self.blocks_in_head or self.head_slim == self.trunks == 1:
            return whole
        head = [
            replace(each, before=each.before // self.head_slim, inside=each.inside // self.head_slim,
                    after=each.after // self.head_slim)
            for each in whole[self.trunk_blocks :]
        ]  # fmt: skip
        head[0] = replace(head[0], before=whole[self.trunk_blocks].before * self.trunks)
        return whole[: self.trunk_blocks] + head

    @property
    def _whole(self) -> list[BlockShape]:
        """Of a head as wide as the trunk."""
        stem, *stages = self.channels or CHANNELS[self.family]
        expansion = 4 if self.family == "resnet50" else 1
        return block_shapes(STAGES[self.family], tuple(stages), before=stem, expansion=expansion)

    @property
    def is_wide(self) -> bool:
        return self.family == "wide_resnet28_10"

    @property
    def is_for_small_pictures(self) -> bool:
        """Whether the family has a small stem and no other."""
        return self.is_wide or self.family == "resnet20"

    @property
    def trunk_blocks(self) -> int:
        """Blocks that the trunk holds; 0 also in a deep ensemble, which has no trunk."""
        return len(self._whole) - self.blocks_in_head


def _stem(model: VisionModel) -> nn.Module:
    channels = model.blocks[0].before
    return WideStem(channels) if model.is_wide else Stem(channels, model.small_stem or model.is_for_small_pictures)


def _block(model: VisionModel, shape: BlockShape) -> nn.Module:
    kinds = {"resnet50": Bottleneck, "wide_resnet28_10": WideBlock}
    return kinds.get(model.family, BasicBlock)(shape)


class VisionTrunk(nn.Module):
    """Pictures [B, 3, Y, X] to feature maps, run once for all heads."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.stem = _stem(model)
        self.blocks = nn.ModuleList(_block(model, shape) for shape in model.blocks[: model.trunk_blocks])

    def forward(self, pictures_BCYX: Tensor, context: None = None) -> Tensor:
        x = self.stem(pictures_BCYX)
        for block in self.blocks:
            x = block(x)
        return x


class VisionHead(nn.Module):
    """Feature maps of the trunk (or pictures, in a deep ensemble) to a loss or to logits."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        if model.trunk_blocks == 0:
            self.stem = _stem(model)
        self.blocks = nn.ModuleList(_block(model, shape) for shape in model.blocks[model.trunk_blocks :])
        features = model.blocks[-1].after * (1 if model.blocks_in_head else model.trunks)
        self.norm = nn.BatchNorm2d(features) if model.is_wide else None
        self.output = nn.Linear(features, model.classes, bias=model.output_bias)
        self.label_smoothing, self.sharing = model.label_smoothing, model.sharing

    def forward(
        self, x: Tensor, context: None = None, targets_B: Tensor | None = None, loss_chunk: int | None = None
    ) -> Tensor:
        """Sum of the pictures' losses in nats (fp32 scalar) when ``targets_B`` is given, else logits [B, classes].

        ``x`` is the trunk's output, or pictures where the head owns the stem. ``context`` and ``loss_chunk`` are there
        since every head is called alike: pictures need no context, and their logits are small enough to be made whole.
        Where M members share the head, losses are [M], of labels [B] or of each member's own [M, B], and logits
        [M, B, classes].
        """
        if hasattr(self, "stem"):
            x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.norm is not None:
            x = F.relu(self.norm(x), inplace=True)
        # Not in bf16, also inside autocast: logits rounded to 8 bits tie, and their loss is rounded like them.
        with _without_autocast(x.device.type):
            logits_BV = self.output(x.to(statistics_dtype(x)).mean(dim=(2, 3)))
        if self.sharing.kind != "none":
            return said_by_members(logits_BV, targets_B, self.sharing, self.loss_sum)
        return logits_BV if targets_B is None else self.loss_sum(logits_BV, targets_B)

    def loss_sum(self, logits_BV: Tensor, targets_B: Tensor) -> Tensor:
        """Sum of the cross-entropies against labels [B] smoothed by ``label_smoothing``; IGNORED ones do not count."""
        return F.cross_entropy(
            logits_BV.to(statistics_dtype(logits_BV)), targets_B, ignore_index=IGNORED, reduction="sum",
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()  # the meta device


def build_vision(model: VisionModel, heads: range | None = None) -> MultiHead:
    """The network of ``model``, with all heads or only those numbered ``heads``.

    Values are torch's defaults; :mod:`nt_pretrain.models.vision_init` gives the real ones.
    """
    trunk: nn.Module | None = VisionTrunk(model) if model.trunk_blocks else None
    if trunk is not None and model.trunks == 2:
        trunk = TwoTrunks(trunk, VisionTrunk(model), dim=1)
    numbers = range(model.heads) if heads is None else heads
    network = MultiHead(trunk, {number: VisionHead(model) for number in numbers})
    share_weights(network, model.sharing)
    return network
