"""How a batch enters a network on the mesh, in training and in evaluation alike.

Text goes in as token numbers, in the dtype that FSDP2 casts weights to. Pictures come as bytes, are normalised on the
device, and are computed in bf16 by autocast: convolutions and products in bf16, batch norms with fp32 weights and
statistics on bf16 maps. Rows of numbers go in as they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import normalised
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import context_of
from nt_pretrain.parallel.exchange import gathered


class Inputs(NamedTuple):
    """S samples.

    Attributes:
        inputs: tokens [S, T] (int64), pixels [S, 3, H, W] (uint8, channels_last), or rows [S, features] (fp32).
        targets: tokens [S, T], or labels [S] (int64); IGNORED where there is none.
        documents: of the tokens, [S, T]; None for pictures and rows.
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None

    @property
    def samples(self) -> int:
        return len(self.inputs)

    def part(self, first: int, size: int) -> Inputs:
        """``size`` samples from ``first`` on."""
        at = slice(first, first + size)
        return Inputs(self.inputs[at], self.targets[at], None if self.documents is None else self.documents[at])

    def to(self, device: torch.device) -> Inputs:
        documents = None if self.documents is None else self.documents.to(device, non_blocking=True)
        return Inputs(
            self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), documents
        )  # fmt: skip

    @staticmethod
    def of_text(tokens: Tensor, documents: Tensor) -> Inputs:
        """From token and document numbers [S, T + 1]: each token predicts the next; padding is no target."""
        targets = tokens[:, 1:].long().masked_fill(documents[:, 1:] < 0, IGNORED)
        return Inputs(tokens[:, :-1].long(), targets, documents[:, :-1])

    @staticmethod
    def of_labelled(samples: Tensor, labels: Tensor) -> Inputs:
        """From pixels [S, 3, H, W] (uint8), or rows [S, features] (fp32), and labels [S]."""
        return Inputs(samples, labels, None)


class Start(NamedTuple):
    """What the heads of this rank start from: the samples of all ranks of its head group.

    Attributes:
        hidden: trunk output of this rank's own samples, with its graph.
        start: of the whole group's, without.
        context: as the heads want it.
        targets: of the whole group's.
    """

    hidden: Tensor
    start: Tensor
    context: object
    targets: Tensor


def computing(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """Around every forward pass of trunk and heads."""
    if config.model.sees_pictures and config.train.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def run_trunk(model: MultiHead, config: Config, batch: Inputs, head_group: dist.ProcessGroup | None) -> Start:
    """Run the trunk on this rank's samples, and gather its output over the ranks that hold other heads."""
    inputs, targets, documents = batch
    if config.model.classifies:
        dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        # To bf16, where that is computed in, rows are cast by FSDP2.
        inputs = normalised(inputs, dtype) if config.model.sees_pictures else inputs.to(dtype)
    hidden = model.trunk_output(inputs, context_of(config.model, documents))
    if documents is not None:
        documents = gathered(documents, 0, head_group)
    start = gathered(hidden.detach(), 0, head_group)
    return Start(hidden, start, context_of(config.model, documents), gathered(targets, 0, head_group))
