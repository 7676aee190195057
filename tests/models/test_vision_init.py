"""Initial weights: the recipe's distributions, and the same bits whoever holds which part."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.models.vision import VisionModel
from nt_pretrain.models.vision_accounting import vision_shapes
from nt_pretrain.models.vision_init import initial_vision_values

MODEL = VisionModel("resnet50", classes=10, heads=2, blocks_in_head=3, output_bias=True)
SHAPES = vision_shapes(MODEL)


def values(name: str, index: torch.Tensor | None = None, model: VisionModel = MODEL, seed: int = 0) -> torch.Tensor:
    shape = SHAPES[name]
    index = torch.arange(math.prod(shape)).view(shape) if index is None else index
    return initial_vision_values(name, shape, index, seed=seed, model=model)


@pytest.mark.parametrize(
    ("name", "fan_out"),
    [
        ("trunk.stem.conv.weight", 64 * 49),
        ("trunk.blocks.1.conv3x3.weight", 64 * 9),
        ("heads.1.blocks.0.conv1x1_last.weight", 2048),
        ("heads.0.blocks.0.downsample.conv.weight", 2048),
    ],
)
def test_convolutions_are_normal_by_fan_out(name: str, fan_out: int) -> None:
    count = min(1 << 16, math.prod(SHAPES[name]))
    found = values(name, torch.arange(count)).double()
    assert float(found.std()) == pytest.approx(math.sqrt(2 / fan_out), rel=4 / math.sqrt(2 * count))
    assert abs(float(found.mean())) < 4 * math.sqrt(2 / fan_out / count)
    assert float(found.abs().max()) > 3 * math.sqrt(2 / fan_out), "normal, not uniform"


def test_the_classifier_is_uniform_and_its_bias_zero() -> None:
    found = values("heads.0.output.weight")
    bound = 1 / math.sqrt(2048)
    assert 0.99 * bound < float(found.abs().max()) <= bound
    assert float(found.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not values("heads.0.output.bias").any()


def test_norms() -> None:
    zero = VisionModel("resnet50", classes=10, heads=2, blocks_in_head=3, output_bias=True, zero_last_norm=True)
    for name in SHAPES:
        if name.endswith("norm.weight"):
            assert (values(name) == 1).all()
            assert (values(name, model=zero) == (0 if ".last_norm." in name else 1)).all(), name
        elif name.endswith("norm.bias"):
            assert (values(name) == 0).all() and (values(name, model=zero) == 0).all()


def test_every_part_has_the_bits_of_the_whole() -> None:
    name = "trunk.blocks.1.conv3x3.weight"
    whole = values(name)
    for rows in (slice(0, 17), slice(17, 64), slice(5, 6)):
        index = torch.arange(whole.numel()).view(whole.shape)[rows]
        assert torch.equal(values(name, index), whole[rows])


def test_heads_and_seeds_differ() -> None:
    index = torch.arange(100)
    first, second = (values(f"heads.{head}.blocks.0.conv3x3.weight", index) for head in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, values("heads.0.blocks.0.conv3x3.weight", index, seed=1))
