"""Overlap of masks against scikit-learn's Jaccard score and against random masks."""

import pytest
import torch
from sklearn.metrics import jaccard_score

from nt_pretrain.counter_random import uniform
from nt_pretrain.eval.mask_overlap import mask_counts, mask_overlap


def masks(places: int, densities: tuple[float, ...], key: int) -> torch.Tensor:
    return torch.stack([uniform(key + i, torch.arange(places)) < d for i, d in enumerate(densities)])


def test_index_of_layers_and_of_shards():
    layers = [masks(800, (0.3, 0.5, 0.5), 1), masks(300, (0.1, 0.9, 0.2), 7)]
    counts = torch.stack([mask_counts(layer.view(3, -1, 20)) for layer in layers])
    jaccard, _ = mask_overlap(counts, torch.tensor([800, 300]))
    whole = torch.cat(layers, dim=1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        expected = jaccard_score(whole[a].numpy(), whole[b].numpy())
        assert float(jaccard[a, b]) == float(jaccard[b, a]) == pytest.approx(expected)
    assert jaccard.diagonal().tolist() == [1.0] * 3
    assert torch.equal(sum(mask_counts(part) for part in layers[0].split(123, dim=1)), counts[0])


def test_random_masks_overlap_as_expected():
    layers = [masks(200_000, (0.2, 0.2), 3), masks(100_000, (0.6, 0.5), 9)]
    counts = torch.stack([mask_counts(layer) for layer in layers])
    jaccard, expected = mask_overlap(counts, torch.tensor([200_000, 100_000]))
    assert float(jaccard[0, 1]) == pytest.approx(float(expected[0, 1]), abs=0.004)
    _, one_layer = mask_overlap(counts[:1], torch.tensor([200_000]))
    assert float(one_layer[0, 1]) == pytest.approx(0.2 / 1.8, abs=0.002), "d / (2 - d)"
    # Densities of layers differ, which alone makes masks alike: one pool of all places would expect less.
    _, pooled = mask_overlap(counts.sum(0, keepdim=True), torch.tensor([300_000]))
    assert float(pooled[0, 1]) < float(expected[0, 1]) - 0.05


def test_ends():
    full, empty = torch.ones(2, 9, dtype=torch.bool), torch.zeros(2, 9, dtype=torch.bool)
    jaccard, expected = mask_overlap(mask_counts(full)[None], torch.tensor([9]))
    assert jaccard[0, 1] == expected[0, 1] == 1.0
    jaccard, expected = mask_overlap(mask_counts(empty)[None], torch.tensor([9]))
    assert jaccard.isnan().all() and expected.isnan().all()
    apart = torch.tensor([[True, False], [False, True]])
    assert mask_overlap(mask_counts(apart)[None], torch.tensor([2]))[0][0, 1] == 0.0
