"""Multiply-adds and densities of the paper's networks, and what a picture saves for its backward."""

from __future__ import annotations

import pytest

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.models.accounting import Count, account
from nt_pretrain.models.vision import VisionModel
from nt_pretrain.models.vision_accounting import (
    flops_per_picture,
    output_places,
    picture_cost,
    saved_elements,
    vision_shapes,
)
from nt_pretrain.sparsity.budget import plan_budgets

R50 = VisionModel("resnet50", heads=3, blocks_in_head=10)
WIDE = VisionModel("wide_resnet28_10", 100, heads=3, blocks_in_head=8, output_bias=True)


@pytest.mark.parametrize(
    ("model", "size", "density", "gmac"),
    [
        (VisionModel("resnet50"), 224, 1.0, 4.089),
        (R50, 224, 1.0, 9.077),
        (R50, 224, 0.3, 4.290),
        (R50, 224, 0.2, 3.176),
        (VisionModel("resnet20", 10), 32, 1.0, 0.0408),  # 40.6 M in the literature, without 1x1 shortcuts
        (VisionModel("wide_resnet28_10", 100), 32, 1.0, 5.243),
        (WIDE, 32, 1.0, 12.374),
        (WIDE, 32, 0.2, 3.582),
    ],
)
def test_multiply_adds_of_the_papers_networks(model: VisionModel, size: int, density: float, gmac: float) -> None:
    budgets = plan_budgets(vision_shapes(model), SparsitySection(density=density)) if density < 1 else {}
    found = picture_cost(model, size, budgets).all
    assert found.active / 1e9 == pytest.approx(gmac, abs=6e-4)
    assert (found.active == found.total) is (density == 1.0)
    assert flops_per_picture(found) == Count(6 * found.total, 6 * found.active)


def test_groups_and_parts_of_the_cost() -> None:
    found = picture_cost(R50, 224, {})
    assert list(found.by_group) == ["stem", "conv1x1", "conv3x3", "downsample", "output"]
    assert list(found.by_part) == ["trunk", "heads.0", "heads.1", "heads.2"]
    assert found.by_group["stem"].total == 64 * 3 * 49 * 112 * 112
    assert found.by_group["output"].total == 3 * 2048 * 1000
    # 3x3: 56, 28, 14 and 7 places a side; three paths of what the heads own.
    trunk = 3 * 64 * 64 * 9 * 56**2 + 3 * 128 * 128 * 9 * 28**2
    head = 9 * (128 * 128 * 28**2 + 6 * 256 * 256 * 14**2 + 3 * 512 * 512 * 7**2)
    assert found.by_group["conv3x3"].total == trunk + 3 * head
    for counts in (found.by_group, found.by_part):
        assert sum(counts.values(), Count()) == found.all


def test_places_are_those_of_the_output() -> None:
    places = output_places(VisionModel("resnet50"), 224)
    assert places["trunk.blocks.3.conv1x1_first.weight"] == 56**2, "v1.5: the stride is in the 3x3"
    assert places["trunk.blocks.3.conv3x3.weight"] == 28**2
    assert places["heads.0.output.weight"] == 1


def test_parameters_by_group() -> None:
    shapes = vision_shapes(R50)
    found = account(shapes, plan_budgets(shapes, SparsitySection(density=0.3)))
    assert found.all.total == 74_338_368
    assert found.by_group["norm"] == Count(142_208, 142_208)
    assert found.by_group["stem"] == Count(9408, 9408)
    assert found.by_group["output"].density == pytest.approx(0.241, abs=5e-4)
    assert found.sparse.total == 74_338_368 - 142_208
    assert sum(found.by_part.values(), Count()) == found.all


@pytest.mark.parametrize(
    "model",
    [
        VisionModel("resnet18", 10, heads=2, blocks_in_head=3, small_stem=True),
        VisionModel("resnet50", 10, heads=2, blocks_in_head=10),
        VisionModel("resnet18", 10, heads=2, blocks_in_head=8),
        VisionModel("wide_resnet28_10", 10, heads=2, blocks_in_head=8),
    ],
)
def test_what_is_saved_without_storage_is_what_is_saved_with(model: VisionModel) -> None:
    assert saved_elements(model, 16) == saved_elements(model, 16, device="cpu")


def test_what_a_small_network_saves_by_hand() -> None:
    """One basic block in the head, at 8 x 8 places: input of each convolution and norm, output of each ReLU."""
    model = VisionModel("resnet18", 10, blocks_in_head=7, small_stem=True)
    place = 64 * 8 * 8
    # picture, stem's convolution (the norm's input), its ReLU (input of the block); inside: convolution, ReLU (input of
    # the second convolution), convolution; the ReLU at the end is the trunk's output.
    assert saved_elements(model, 8).trunk == 3 * 8 * 8 + 2 * place + 4 * place
    alone = VisionModel("resnet18", 10, heads=2, blocks_in_head=8, small_stem=True)
    assert saved_elements(alone, 8).trunk == 3 * 8 * 8, "a deep ensemble keeps the picture"
