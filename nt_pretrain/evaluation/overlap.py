"""How much the topologies of all that speak overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.eval.gather import summed_over_ranks
from nt_pretrain.eval.mask_overlap import mask_counts, mask_overlap
from nt_pretrain.evaluation.chosen import Speaker
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.models.groups import part_of
from nt_pretrain.models.network import block_count
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.topology import SparseLayer

Layers = dict[str, SparseLayer]


def topology_overlap(
    speakers: Sequence[Speaker], loaded: Sequence[Loaded], ranks: Ranks
) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """Jaccard index of every pair of heads over their sparse layers, and its expectation for random masks of the same
    densities: both fp64 [M, M]; None where there are no such layers or there is one head. Collective.

    Of the heads of one checkpoint the layers are those that each has for itself. Of several checkpoints they are all on
    the path of a head, trunk included, by their place on it; heads of one checkpoint then have a trunk in common.

    Every rank holds all heads, cut alike.

    Returns:
        Also what was left out since not all have it in one shape, in words, or "".
    """
    if any(each.config.model.sharing != "none" for each in speakers):
        return None, ""  # members that share their weights have one topology
    if len(speakers) == 1:
        heads = [_own_layers(loaded[0].layers, head) for head in speakers[0].heads]
    else:
        heads = [
            _path(checkpoint.layers, head, each.config.model)
            for each, checkpoint in zip(speakers, loaded, strict=True)
            for head in each.heads
        ]
    groups = [
        [each[name] for each in heads] for name in heads[0] if all(_alike(heads[0], each, name) for each in heads)
    ]
    every = {name for each in heads for name in each}
    left_out = ""
    if len(heads) > 1 and len(groups) < len(every):
        left_out = (
            f"mask overlap is of {len(groups)} sparse layers; {len(every) - len(groups)} more are not compared, since "
            "not all members have them in one shape"
        )
    if len(heads) < 2 or not groups:
        return None, left_out
    counts, places = [], []
    for same in groups:
        whole = mask_counts(torch.stack([layer.active for layer in same]))
        # Tables of blocks are whole on every rank.
        counts.append(whole * (not same[0].is_replicated or ranks.rank == 0))
        places.append(same[0].budget.units)
    return mask_overlap(summed_over_ranks(torch.stack(counts), ranks), torch.tensor(places)), left_out


def _own_layers(layers: list[SparseLayer], head: int) -> Layers:
    part = f"heads.{head}"
    return {each.name.removeprefix(part): each for each in layers if part_of(each.name) == part}


def _path(layers: list[SparseLayer], head: int, model: ModelSection) -> Layers:
    """All layers that a head's logits depend on; blocks are numbered from the input on, whoever owns them."""
    before = block_count(model) - model.blocks_in_head
    found = {}
    for each in layers:
        part = part_of(each.name)
        if part in ("trunk", f"heads.{head}"):
            shift = 0 if part == "trunk" else before
            inside = each.name.removeprefix(part)
            found[re.sub(r"^\.blocks\.(\d+)", lambda at: f".blocks.{int(at[1]) + shift}", inside)] = each  # noqa: B023
    return found


def _alike(one: Layers, other: Layers, name: str) -> bool:
    """Whether both have the layer, of one shape and with units of one size."""
    if name not in other:
        return False
    first, second = one[name], other[name]
    return (first.budget.shape, first.unit, len(first.active)) == (
        second.budget.shape, second.unit, len(second.active),
    )  # fmt: skip
