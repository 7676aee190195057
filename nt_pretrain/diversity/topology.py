"""How much the topologies of voices overlap, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.diversity.voice import Voice
from nt_pretrain.eval.mask_overlap import mask_counts, mask_overlap


@dataclass(frozen=True)
class LayerOverlap:
    """One sparse layer in all voices.

    Attributes:
        units: of the layer in one voice.
        density: mean over the voices.
        jaccard: mean Jaccard index over pairs of voices, and that of the pairs with the least and the most.
        expected: that of random masks of the same densities.
    """

    name: str
    units: int
    density: float
    jaccard: tuple[float, float, float]
    expected: float


def layer_overlaps(voices: list[Voice]) -> list[LayerOverlap]:
    """Of the sparse layers that all voices with any have, alike in size. Layers that two voices share, and those with
    all their units, are left out.
    """
    voices = [voice for voice in voices if voice.masks]
    found: list[LayerOverlap] = []
    if len(voices) < 2:
        return found
    for name, first in voices[0].masks.items():
        masks = [voice.masks.get(name) for voice in voices]
        same = [each for each in masks if each is not None and each.shape == first.shape]
        if len(same) < len(voices) or len({id(each) for each in same}) < len(same):
            continue
        counts = mask_counts(torch.stack(same))
        if bool(counts.diagonal().eq(first.numel()).all()):
            continue
        jaccard, expected = mask_overlap(counts[None], torch.tensor([first.numel()]))
        found.append(
            LayerOverlap(
                name,
                first.numel(),
                float(counts.diagonal().double().mean()) / first.numel(),
                (pair_mean(jaccard), float(_pairs(jaccard).min()), float(_pairs(jaccard).max())),
                pair_mean(expected),
            )
        )
    return found


def pair_mean(matrix: Tensor) -> float:
    """Mean of a matrix [V, V] off its diagonal; nan for one voice."""
    return float(_pairs(matrix).mean())


def _pairs(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]
