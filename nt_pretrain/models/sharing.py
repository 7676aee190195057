"""Networks whose members share their weights: layers that know M members, and how a plain network gets them.

rank_one is BatchEnsemble (Wen, Tran and Ba 2020, arXiv 2002.06715): member i multiplies with W o (r_i s_i^T), as
r_i o (W (s_i o x)), and has norms and biases of its own. inputs is MIMO (Havasi et al. 2021, arXiv 2010.06610): one
network is given M pictures side by side and has M classifiers. low_rank is LoRA-Ensemble (Halbheer et al. 2024, arXiv
2405.14438): member i adds B_i A_i to the frozen query, key, value and output projections of attention, and has a final
norm and an output layer of its own.

Of rank_one and low_rank the trunk's entrance repeats the batch: from there on rows are those of member 0, then those of
member 1, and so on. Shared embeddings have no factors. Shape letters: M members, B rows of one member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.groups import group_of, part_of
from nt_pretrain.models.llama import RMSNorm

Kind = Literal["none", "rank_one", "inputs", "low_rank"]


@dataclass(frozen=True)
class Sharing:
    """What members have in common.

    Attributes:
        members: M.
        rank: of what a member adds to a matrix; low_rank only.
    """

    kind: Kind = "none"
    members: int = 1
    rank: int = 1

    @property
    def copies(self) -> int:
        """How often a sample passes through the shared weights."""
        return 1 if self.kind == "inputs" else self.members


ALONE = Sharing()
ENTRANCES = ("trunk.stem.conv", "trunk.blocks.0.linear")
"""Layers that are given pictures or rows."""


def sharing_of(model: ModelSection) -> Sharing:
    """How the members of a network share weights."""
    return Sharing(model.sharing, model.members, model.rank)


class PerMember(nn.ModuleList):
    """Layers that are not shared: layer i is given the rows of member i."""

    def forward(self, x: Tensor) -> Tensor:
        if len(self) == 1:
            return cast(Tensor, self[0](x))
        return torch.cat([layer(part) for layer, part in zip(self, x.chunk(len(self)), strict=True)])

    def matrices(self) -> Iterator[Tensor]:
        """Of linear layers, the weight of each member."""
        return (cast(Tensor, layer.weight) for layer in self)


class RepeatedEmbedding(nn.Embedding):
    """The entrance of text: tokens [B, T] to hidden states [M * B, T, H]."""

    def __init__(self, plain: nn.Embedding, members: int) -> None:
        super().__init__(plain.num_embeddings, plain.embedding_dim)
        self.weight, self.members = plain.weight, members

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return torch.cat([super().forward(tokens_BT)] * self.members)


class RankOneLinear(nn.Linear):
    """[M * B, ..., inputs] to [M * B, ..., outputs]; the factors are vectors, [M * inputs] and [M * outputs].

    Args:
        entrance: whether it is given rows [B, ...], each of which every member is to see.
    """

    def __init__(self, plain: nn.Linear, members: int, *, entrance: bool) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight, self.members, self.entrance = plain.weight, members, entrance
        self.rank_one_in = nn.Parameter(torch.ones(members * plain.in_features))
        self.rank_one_out = nn.Parameter(torch.ones(members * plain.out_features))
        self.bias = None if plain.bias is None else nn.Parameter(torch.zeros(members * plain.out_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.entrance and self.members > 1:
            x = torch.cat([x] * self.members)
        scaled = _times(x, self.rank_one_in, self.members, -1)
        y = _times(F.linear(scaled, self.weight), self.rank_one_out, self.members, -1)
        return y if self.bias is None else _spread(y, self.bias, self.members, -1, add=True)

    def matrices(self) -> Iterator[Tensor]:
        """The weight of each member, [outputs, inputs]."""
        pairs = zip(self.rank_one_out.chunk(self.members), self.rank_one_in.chunk(self.members), strict=True)
        return (self.weight * out[:, None] * into for out, into in pairs)


class RankOneConv(nn.Conv2d):
    """The same of a convolution, a factor for each channel; without a bias.

    Args:
        entrance: whether it is given pictures [B, ...], each of which every member is to see.
    """

    def __init__(self, plain: nn.Conv2d, members: int, *, entrance: bool) -> None:
        super().__init__(
            plain.in_channels, plain.out_channels, cast(tuple[int, int], plain.kernel_size),
            cast(tuple[int, int], plain.stride), cast(tuple[int, int], plain.padding), bias=False,
        )  # fmt: skip
        self.weight, self.members, self.entrance = plain.weight, members, entrance
        self.rank_one_in = nn.Parameter(torch.ones(members * plain.in_channels))
        self.rank_one_out = nn.Parameter(torch.ones(members * plain.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.entrance and self.members > 1:
            x = torch.cat([x] * self.members)
        y = super().forward(_times(x, self.rank_one_in, self.members, 1))
        return _times(y, self.rank_one_out, self.members, 1)


class LowRankLinear(nn.Linear):
    """x Wᵀ + x A_iᵀ B_iᵀ for the rows of member i; ``low_rank_in`` are all A, [M * rank, inputs], and
    ``low_rank_out`` all B, [M * outputs, rank].
    """

    def __init__(self, plain: nn.Linear, members: int, rank: int) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight, self.members, self.rank = plain.weight, members, rank
        self.low_rank_in = nn.Parameter(torch.zeros(members * rank, plain.in_features))
        self.low_rank_out = nn.Parameter(torch.zeros(members * plain.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        into = self.low_rank_in.view(self.members, self.rank, -1).transpose(1, 2)
        out = self.low_rank_out.view(self.members, -1, self.rank).transpose(1, 2)
        return y + (x.reshape(self.members, -1, x.shape[-1]) @ into @ out).view(y.shape)


class ManyInputs(nn.Conv2d):
    """The entrance of M pictures side by side, [B, 3 * M, Y, X]; one of three channels is given to all members."""

    def __init__(self, plain: nn.Conv2d, members: int) -> None:
        super().__init__(
            plain.in_channels * members, plain.out_channels, cast(tuple[int, int], plain.kernel_size),
            cast(tuple[int, int], plain.stride), cast(tuple[int, int], plain.padding), bias=False,
        )  # fmt: skip
        self.alone = plain.in_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.alone and self.in_channels > self.alone:
            x = torch.cat([x] * (self.in_channels // self.alone), dim=1)
        return super().forward(x)


class ManyRows(nn.Linear):
    """The same of rows, [B, M * features]."""

    def __init__(self, plain: nn.Linear, members: int) -> None:
        super().__init__(plain.in_features * members, plain.out_features, bias=plain.bias is not None)
        self.alone = plain.in_features

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == self.alone and self.in_features > self.alone:
            x = torch.cat([x] * (self.in_features // self.alone), dim=-1)
        return super().forward(x)


def share_weights(network: nn.Module, sharing: Sharing) -> None:
    """Give a plain network, trunk and one head, the layers of ``sharing``, in place. Shared weights keep their names;
    frozen ones no longer require a gradient.
    """
    if sharing.kind == "none":
        return
    for name, module in list(network.named_modules()):
        made = _REPLACED[sharing.kind](name, module, sharing)
        if made is not None:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, made)
    for name, parameter in network.named_parameters():
        if is_frozen(name, sharing):
            parameter.requires_grad_(False)


def is_frozen(name: str, sharing: Sharing) -> bool:
    """Whether the parameter is that of the parent and is not trained."""
    return sharing.kind == "low_rank" and part_of(name) == "trunk" and group_of(name) != "factor"


def uses_of(name: str, sharing: Sharing) -> int:
    """How often a sample is multiplied with the matrix ``name``: by every member, or by the one that owns a part."""
    alone = group_of(name) == "factor" or (sharing.kind == "low_rank" and part_of(name) != "trunk")
    return 1 if alone else sharing.copies


def by_member(x: Tensor, sharing: Sharing) -> Tensor:
    """What an output layer says, by member first: [M, B, ...] of rows [M * B, ...], or of columns [B, M * C]."""
    if sharing.kind == "inputs":
        return x.unflatten(1, (sharing.members, -1)).transpose(0, 1)
    return x.unflatten(0, (sharing.members, -1))


def said_by_members(
    logits: Tensor, targets: Tensor | None, sharing: Sharing, loss_sum: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Logits [M, B, C]; or losses [M] against labels [B], or each member's own [M, B]."""
    logits_MBC = by_member(logits, sharing)
    if targets is None:
        return logits_MBC
    targets_MB = targets.expand(logits_MBC.shape[:2])
    return torch.stack([loss_sum(*pair) for pair in zip(logits_MBC, targets_MB, strict=True)])


def _rank_one(name: str, module: nn.Module, sharing: Sharing) -> nn.Module | None:
    members = sharing.members
    match module:
        case nn.Embedding():
            return RepeatedEmbedding(module, members)
        case nn.Linear():
            return RankOneLinear(module, members, entrance=name in ENTRANCES)
        case nn.Conv2d():
            return RankOneConv(module, members, entrance=name in ENTRANCES)
        case RMSNorm():
            return PerMember(RMSNorm(len(module.weight), module.eps) for _ in range(members))
        case nn.BatchNorm2d():
            return PerMember(nn.BatchNorm2d(module.num_features) for _ in range(members))
    return None


def _low_rank(name: str, module: nn.Module, sharing: Sharing) -> nn.Module | None:
    part, layer = part_of(name), name.rpartition(".")[2]
    if isinstance(module, nn.Embedding):
        return RepeatedEmbedding(module, sharing.members)
    if isinstance(module, nn.Linear) and ".attention." in name:
        return LowRankLinear(module, sharing.members, sharing.rank)
    if isinstance(module, RMSNorm) and part != "trunk":
        return PerMember(RMSNorm(len(module.weight), module.eps) for _ in range(sharing.members))
    if isinstance(module, nn.Linear) and layer == "output":
        shape = module.in_features, module.out_features
        return PerMember(nn.Linear(*shape, bias=False) for _ in range(sharing.members))
    return None


def _inputs(name: str, module: nn.Module, sharing: Sharing) -> nn.Module | None:
    if isinstance(module, nn.Conv2d) and name in ENTRANCES:
        return ManyInputs(module, sharing.members)
    if isinstance(module, nn.Linear) and name in ENTRANCES:
        return ManyRows(module, sharing.members)
    if isinstance(module, nn.Linear) and name.rpartition(".")[2] == "output":
        return nn.Linear(module.in_features, module.out_features * sharing.members, bias=module.bias is not None)
    return None


_REPLACED = {"rank_one": _rank_one, "low_rank": _low_rank, "inputs": _inputs}


def _times(x: Tensor, factors: Tensor, members: int, dim: int) -> Tensor:
    return _spread(x, factors, members, dim, add=False)


def _spread(x: Tensor, values: Tensor, members: int, dim: int, *, add: bool) -> Tensor:
    """Multiply or add ``values`` [M * C], C along ``dim`` of the rows of member i those of i."""
    shape = [members, *[1] * x.ndim]
    shape[dim + 1 if dim >= 0 else dim] = -1
    by_row, values = x.unflatten(0, (members, -1)), values.to(x.dtype).view(shape)
    return (by_row + values if add else by_row * values).flatten(0, 1)
