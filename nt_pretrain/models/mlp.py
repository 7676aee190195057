"""One trunk, M heads: a multilayer perceptron for rows of numbers, cut into an ensemble as the other families are.

A block is a hidden layer: a matrix, a bias and a ReLU. The trunk is the first blocks; each head owns the last
``blocks_in_head`` blocks and its output layer. With all blocks in the heads nothing is shared: a deep ensemble. With
one head it is an ordinary network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from nt_pretrain.models.loss import IGNORED, statistics_dtype
from nt_pretrain.models.multihead import MultiHead, TwoTrunks
from nt_pretrain.models.sharing import ALONE, Sharing, said_by_members, share_weights


@dataclass(frozen=True)
class MlpModel:
    """A network for rows, cut into one trunk and M heads.

    Attributes:
        features: numbers of a row.
        widths: of the hidden layers, first to last.
        classes: of the output layer.
        heads: M, the heads of the ensemble. 1 is an ordinary single model.
        blocks_in_head: hidden layers each head owns. 0: the output layer only; all: a deep ensemble.
        head_slim: widths of the layers of a head are divided by it.
        trunks: 1, or 2 side by side, of which heads read both.
        label_smoothing: share of the target's weight spread over all classes, in the training loss.
        sharing: how members share the weights of one head.

    Raises:
        ValueError: values that no network can have, with those that it can.
    """

    features: int = 32
    widths: tuple[int, ...] = (64, 64)
    classes: int = 10
    heads: int = 1
    blocks_in_head: int = 0
    label_smoothing: float = 0.0
    sharing: Sharing = ALONE
    head_slim: int = 1
    trunks: int = 1

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("model.widths: [] leaves no hidden layer; give one width at least, such as [64]")
        if self.blocks_in_head > len(self.widths):
            raise ValueError(
                f"model.blocks_in_head: {self.blocks_in_head} exceeds the {len(self.widths)} hidden layers of "
                f"model.widths; a head owns 0 (only its output layer) to {len(self.widths)} (a deep ensemble)"
            )
        if wrong := [width for width in self.widths[self.trunk_blocks :] if width % self.head_slim]:
            raise ValueError(f"model.head_slim: {self.head_slim} does not divide {wrong[0]}, a width of a head's layer")

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each hidden layer on the path of a head."""
        found, before = [], self.features
        for number, width in enumerate(self.widths):
            after = width if number < self.trunk_blocks else width // self.head_slim
            found.append((self.trunks * before if number == self.trunk_blocks else before, after))
            before = after
        return found

    @property
    def last(self) -> int:
        """Inputs of the output layer."""
        return self.blocks[-1][1] if self.blocks_in_head else self.trunks * self.blocks[-1][1]

    @property
    def trunk_blocks(self) -> int:
        """Hidden layers that the trunk holds; 0 also in a deep ensemble, which has no trunk."""
        return len(self.widths) - self.blocks_in_head


class MlpBlock(nn.Module):
    """A hidden layer: [..., inputs] to [..., outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class MlpTrunk(nn.Module):
    """Rows [B, features] to hidden units [B, width], run once for all heads."""

    def __init__(self, model: MlpModel) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MlpBlock(*block) for block in model.blocks[: model.trunk_blocks])

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class MlpHead(nn.Module):
    """Hidden units of the trunk (or rows, in a deep ensemble) to a loss or to logits."""

    def __init__(self, model: MlpModel) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MlpBlock(*block) for block in model.blocks[model.trunk_blocks :])
        self.output = nn.Linear(model.last, model.classes)
        self.label_smoothing, self.sharing = model.label_smoothing, model.sharing

    def forward(
        self, x: Tensor, context: None = None, targets_B: Tensor | None = None, loss_chunk: int | None = None
    ) -> Tensor:
        """Sum of the rows' losses in nats (fp32 scalar) when ``targets_B`` is given, else logits [B, classes].

        ``context`` and ``loss_chunk`` are there since every head is called alike; rows need neither. Where M members
        share the head, losses are [M], of labels [B] or of each member's own [M, B], and logits [M, B, classes].
        """
        for block in self.blocks:
            x = block(x)
        logits_BV = self.output(x)
        if self.sharing.kind != "none":
            return said_by_members(logits_BV, targets_B, self.sharing, self.loss_sum)
        return logits_BV if targets_B is None else self.loss_sum(logits_BV, targets_B)

    def loss_sum(self, logits_BV: Tensor, targets_B: Tensor) -> Tensor:
        """Sum of the cross-entropies against labels [B] smoothed by ``label_smoothing``; IGNORED ones do not count."""
        return F.cross_entropy(
            logits_BV.to(statistics_dtype(logits_BV)), targets_B, ignore_index=IGNORED, reduction="sum",
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


def build_mlp(model: MlpModel, heads: range | None = None) -> MultiHead:
    """The network of ``model``, with all heads or only those numbered ``heads``.

    Values are torch's defaults; :mod:`nt_pretrain.models.mlp_init` gives the real ones.
    """
    trunk: nn.Module | None = MlpTrunk(model) if model.trunk_blocks else None
    if trunk is not None and model.trunks == 2:
        trunk = TwoTrunks(trunk, MlpTrunk(model), dim=-1)
    numbers = range(model.heads) if heads is None else heads
    network = MultiHead(trunk, {number: MlpHead(model) for number in numbers})
    share_weights(network, model.sharing)
    return network
