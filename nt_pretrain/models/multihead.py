"""One trunk, M heads: how a LLaMA is cut into an ensemble.

NeuroTrails (arXiv 2505.17909): the embedding and the first ``layers - blocks_in_head`` blocks are shared, each head
owns the remaining blocks, its final norm and its output layer. Heads have full width. With ``blocks_in_head = layers``
nothing is shared, embeddings included: a deep ensemble. With one head it is an ordinary model.

Trunk and heads are separate modules that are called one after the other, since the step runs a head's backward before
the next head's forward (see :mod:`nt_pretrain.train.step`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.llama import Block, Context, RMSNorm
from nt_pretrain.models.loss import linear_cross_entropy_sum, matrix_cross_entropy_sum
from nt_pretrain.models.sharing import PerMember, RankOneLinear, by_member, share_weights, sharing_of
from nt_pretrain.sparsity.csr_layers import CsrLinear, CsrMatrix
from nt_pretrain.sparsity.layers import BlockMatrix, SparseLinear


class Trunk(nn.Module):
    """Tokens [B, T] to hidden states [B, T, H], run once for all heads."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocab_size, model.hidden)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers - model.blocks_in_head))

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        x_BTH = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTH = block(x_BTH, context)
        return x_BTH


class TwoTrunks(nn.Module):
    """Two trunks of one kind side by side; what they put out stands one behind the other along ``dim``."""

    def __init__(self, first: nn.Module, second: nn.Module, dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([first, second])
        self.dim = dim

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of the first, then those of the second."""
        return [block for part in self.parts for block in part.get_submodule("blocks").children()]

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return torch.cat([part(inputs, context) for part in self.parts], dim=self.dim)


class Head(nn.Module):
    """Hidden states of the trunk (or tokens, in a deep ensemble) to a loss or to logits.

    Behind two trunks a matrix makes one residual stream of both.
    """

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        if model.blocks_in_head == model.layers:
            self.embedding = nn.Embedding(model.vocab_size, model.hidden)
        if model.trunks == 2:
            self.linear = nn.Linear(2 * model.hidden, model.hidden, bias=False)
        self.blocks = nn.ModuleList(Block(model, model.head_slim) for _ in range(model.blocks_in_head))
        self.norm = RMSNorm(model.hidden, model.norm_eps)
        self.output = nn.Linear(model.hidden, model.vocab_size, bias=False)
        self.norm_passes = 2 if model.final_norm_twice else 1
        self.sharing = sharing_of(model)

    def forward(self, x: Tensor, context: Context, targets_BT: Tensor | None = None, loss_chunk: int = 1024) -> Tensor:
        """Sum of the token losses in nats (fp32 scalar) when ``targets_BT`` is given, else logits [B, T, V].

        ``x`` is the trunk's output [B, T, H] ([B, T, 2 H] of two), or tokens [B, T] where the head owns the embedding.
        Where M members share the head, it is [M * B, T, H], losses are [M] and logits [M, B, T, V].
        """
        if hasattr(self, "embedding"):
            x = self.embedding(x)
        if hasattr(self, "linear"):
            x = self.linear(x)
        for block in self.blocks:
            x = block(x, context)
        for _ in range(self.norm_passes):
            x = self.norm(x)
        if self.sharing.kind != "none":
            return self._said_by_members(x, targets_BT, loss_chunk)
        return self.output(x) if targets_BT is None else self.loss_sum(x, targets_BT, loss_chunk)

    def _said_by_members(self, x: Tensor, targets_BT: Tensor | None, chunk: int) -> Tensor:
        if targets_BT is None:
            return by_member(self.output(x), self.sharing)
        output: nn.Module = self.output
        assert isinstance(output, RankOneLinear | PerMember)
        # Each with a matrix of its own: the loss makes logits some tokens at a time, of one matrix.
        return torch.stack(
            [
                linear_cross_entropy_sum(part.reshape(-1, x.shape[-1]), weight, targets_BT.reshape(-1), chunk=chunk)
                for part, weight in zip(x.chunk(self.sharing.members), output.matrices(), strict=True)
            ]
        )

    def loss_sum(self, x_BTH: Tensor, targets_BT: Tensor, chunk: int) -> Tensor:
        """Sum of the token losses of normalised hidden states; see :meth:`forward`."""
        hidden_NH, targets_N = x_BTH.reshape(-1, x_BTH.shape[-1]), targets_BT.reshape(-1)
        output: nn.Module = self.output
        if isinstance(output, SparseLinear | CsrLinear):
            weight = output.weight.detach()
            matrix = BlockMatrix(output, weight) if isinstance(output, SparseLinear) else CsrMatrix(output, weight)
            return matrix_cross_entropy_sum(hidden_NH, output.weight, matrix, targets_N, chunk=chunk)
        return linear_cross_entropy_sum(hidden_NH, self.output.weight, targets_N, chunk=chunk)


class MultiHead(nn.Module):
    """The ensemble. ``trunk`` is absent (None) in a deep ensemble; ``heads`` are those held here, by their number.

    Whatever the network: a trunk is called with (inputs, context); a head with (trunk's output, context) for logits,
    and with targets and a chunk size after those for the sum of the losses. ``context`` is what the network needs
    beside its inputs, None for pictures and rows.
    """

    trunk: Any  # Trunk, VisionTrunk, MlpTrunk, TwoTrunks or None; two of them are built on this module

    def __init__(self, trunk: nn.Module | None, heads: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({str(number): head for number, head in heads.items()})

    def trunk_output(self, inputs: Tensor, context: Context | None) -> Tensor:
        """What every head starts from: the trunk's output for the batch ``inputs``, or these themselves without a
        trunk. Of a LLaMA: hidden states [B, T, H] of tokens [B, T].
        """
        return inputs if self.trunk is None else self.trunk(inputs, context)


def build(model: ModelSection, heads: range | None = None) -> MultiHead:
    """The model of a configuration, with all heads or only those numbered ``heads``.

    Values are torch's defaults; :mod:`nt_pretrain.models.init` gives the real ones.
    """
    trunk: nn.Module | None = Trunk(model) if model.blocks_in_head < model.layers else None
    if trunk is not None and model.trunks == 2:
        trunk = TwoTrunks(trunk, Trunk(model), dim=-1)
    network = MultiHead(trunk, {number: Head(model) for number in (range(model.heads) if heads is None else heads)})
    share_weights(network, sharing_of(model))
    return network
