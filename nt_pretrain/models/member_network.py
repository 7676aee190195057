"""One member of a network whose members share weights, as a plain network: for use without the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import build
from nt_pretrain.models.sharing import LowRankLinear, PerMember, RankOneConv, RankOneLinear, RepeatedEmbedding


def plain_section(model: ModelSection) -> ModelSection:
    """The same network without members."""
    return model.model_copy(update={"sharing": "none", "members": 1})


@torch.no_grad()
def member_network(network: MultiHead, model: ModelSection, member: int) -> MultiHead:
    """The plain network, with one head, that computes what member number ``member`` says.

    Args:
        network: of plain tensors that are whole; whatever needs no change is shared with it.

    Raises:
        ValueError: the members see several samples at a time (``model.sharing: inputs``), so none is a network.
    """
    if model.sharing == "inputs":
        raise ValueError("members of a network of many inputs are its outputs; none is a network by itself")
    with torch.device("meta"):
        plain = build(plain_section(model))
    for path, module in network.named_modules():
        if isinstance(network.get_submodule(path.rpartition(".")[0]), PerMember):
            continue
        if isinstance(module, PerMember):
            plain.set_submodule(path, module[member])
        elif isinstance(module, RankOneLinear | RankOneConv | LowRankLinear | RepeatedEmbedding):
            own = plain.get_submodule(path)
            own.weight = nn.Parameter(_weight(module, member), requires_grad=False)
            if isinstance(module, RankOneLinear) and module.bias is not None:
                own.bias = nn.Parameter(module.bias.chunk(module.members)[member], requires_grad=False)
        elif not list(module.children()) and path:
            plain.set_submodule(path, module)  # of low-rank members what is frozen
    return plain.train(network.training)


def _weight(module: RankOneLinear | RankOneConv | LowRankLinear | RepeatedEmbedding, member: int) -> Tensor:
    if isinstance(module, RepeatedEmbedding):
        return module.weight
    if isinstance(module, LowRankLinear):
        into, out = (x.chunk(module.members)[member] for x in (module.low_rank_in, module.low_rank_out))
        return module.weight + out @ into
    into, out = (x.chunk(module.members)[member] for x in (module.rank_one_in, module.rank_one_out))
    return module.weight * torch.outer(out, into).view(len(out), len(into), *[1] * (module.weight.ndim - 2))
