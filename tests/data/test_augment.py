"""Crops are functions of (seed, epoch, sample), drawn as defined; pixels are Pillow's within one level."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from nt_pretrain.counter_random import key_of
from nt_pretrain.data import augment, images
from nt_pretrain.data.augment import (
    Box,
    evaluation_picture,
    jittered,
    normalised,
    random_box,
    reduced,
    resized,
    training_picture,
)
from nt_pretrain.data.images import decode
from tests.data.photos import encoded, photo

BILINEAR = Image.Resampling.BILINEAR


def as_array(picture: torch.Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy().astype(int)


def test_the_same_sample_in_an_epoch_is_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(photo(150, 200))
    first = training_picture(content, seed=1, epoch=2, sample=3, size=32, jitter=0.4)
    training_picture(content, seed=1, epoch=2, sample=9, size=32)  # what others draw in between changes nothing
    torch.manual_seed(5)
    assert torch.equal(first, training_picture(content, seed=1, epoch=2, sample=3, size=32, jitter=0.4))
    monkeypatch.setattr(images, "simplejpeg", None)
    assert torch.equal(first, training_picture(content, seed=1, epoch=2, sample=3, size=32, jitter=0.4))
    for seed, epoch, sample in ((0, 2, 3), (1, 1, 3), (1, 2, 4)):
        other = training_picture(content, seed=seed, epoch=epoch, sample=sample, size=32, jitter=0.4)
        assert not torch.equal(first, other)


def test_the_crop_of_a_key_never_changes() -> None:
    """A run that resumes with a later version must see the crops of the earlier one."""
    assert random_box(375, 500, key_of(0, "picture", 0, 0)) == Box(20, 224, 190, 241)


def boxes(height: int, width: int, count: int = 4000) -> np.ndarray:
    found = [random_box(height, width, key_of("boxes", number)) for number in range(count)]
    return np.array([[box.top, box.left, box.height, box.width] for box in found])


def test_boxes_are_drawn_as_defined() -> None:
    top, left, height, width = boxes(2000, 2000).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 2000).all() and (left + width <= 2000).all()
    ratio = width / height
    assert 0.749 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.335
    # Below an area of 3/4 a box fits into a square whatever its ratio, so there the draw is the uniform one.
    share = height * width / 2000**2
    small = share < 0.7
    assert 0.079 < share.min() < 0.082 and share.max() <= 1
    assert abs(share[small].mean() - (0.08 + 0.7) / 2) < 0.01
    assert abs(share[small].std() - (0.7 - 0.08) / math.sqrt(12)) < 0.006
    logarithm = np.log(ratio[small])
    assert abs(logarithm.mean()) < 0.01
    assert abs(logarithm.std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.006
    for place, room in ((top, 2000 - height), (left, 2000 - width)):
        part = (place / np.maximum(room, 1))[small]
        assert abs(part.mean() - 0.5) < 0.015 and abs(part.std() - 1 / math.sqrt(12)) < 0.008
    parts = [place / np.maximum(2000 - side, 1) for place, side in ((top, height), (left, width))]
    assert abs(np.corrcoef(*parts)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("shape", "box"),
    [((10, 1000), Box(0, 493, 10, 13)), ((1000, 10), Box(493, 0, 13, 10)), ((1, 1), Box(0, 0, 1, 1))],
)
def test_where_nothing_fits_the_centre_is_taken(shape: tuple[int, int], box: Box) -> None:
    assert random_box(*shape, key_of(0), area=(1.0, 1.0)) == box


def test_half_are_mirrored() -> None:
    content = encoded(photo(40, 40))
    plain = training_picture(content, seed=0, epoch=0, sample=0, size=40, area=(1.0, 1.0))
    count = 0
    for sample in range(400):
        found = training_picture(content, seed=0, epoch=0, sample=sample, size=40, area=(1.0, 1.0))
        if box_is_whole(sample):
            count += torch.equal(found, plain)
    whole = sum(map(box_is_whole, range(400)))
    assert whole > 100 and 0.35 < count / whole < 0.65


def box_is_whole(sample: int) -> bool:
    return random_box(40, 40, key_of(0, "picture", 0, sample), area=(1.0, 1.0)) == Box(0, 0, 40, 40)


@pytest.mark.parametrize("box", [Box(0, 0, 300, 400), Box(17, 31, 200, 133), Box(100, 5, 40, 390), Box(3, 3, 224, 224)])
def test_a_crop_is_pillows_within_one_level(box: Box) -> None:
    image = photo(300, 400)
    found = as_array(resized(decode(encoded(image, "PNG")), box, (224, 224)))
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = np.asarray(part.resize((224, 224), BILINEAR)).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - expected).mean() < 0.1


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (256, 256), (100, 130), (1000, 257)])
def test_evaluation_is_pillows_within_one_level(shape: tuple[int, int]) -> None:
    content = encoded(photo(*shape))
    image = Image.open(io.BytesIO(content))
    height, width = shape
    size = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    whole = image.resize(size, BILINEAR)
    left, top = round((whole.width - 224) / 2), round((whole.height - 224) / 2)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).astype(int)
    found = evaluation_picture(content)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 224, 224))
    assert np.abs(as_array(found) - expected).max() <= 1


def test_a_crop_of_a_scaled_picture_is_near_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(photo(900, 1200))
    asked: list[int] = []
    plain = augment.decode

    def spied(content: bytes, reduce: int = 1) -> torch.Tensor:
        asked.append(reduce)
        return plain(content, reduce)

    monkeypatch.setattr(augment, "decode", spied)
    for sample in range(8):
        box = random_box(900, 1200, key_of(0, "picture", 0, sample))
        found = as_array(training_picture(content, seed=0, epoch=0, sample=sample, size=64))
        small = reduced(box, asked[-1])
        # The box on the grid of the scaled picture is at most half a pixel of that away from the one drawn.
        grid = Box(*(asked[-1] * side for side in (small.top, small.left, small.height, small.width)))
        assert abs(grid.top - box.top) <= asked[-1] / 2 and 0 <= box.height - grid.height < asked[-1]
        whole = as_array(resized(plain(content), grid, (64, 64)))
        assert min(np.abs(found - whole).mean(), np.abs(found[:, ::-1] - whole).mean()) < 3
    assert len(set(asked)) > 1 and max(asked) >= 4


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_reduced_box_stays_inside_and_large_enough(reduce: int) -> None:
    for height, width in ((451, 603), (449, 448 + reduce), (1797, 1801)):
        for number in range(50):
            box = random_box(height, width, key_of(number))
            small = reduced(box, reduce)
            assert small.top + small.height <= -(-height // reduce)
            assert small.left + small.width <= -(-width // reduce)
            assert small.height >= box.height // reduce and small.width >= box.width // reduce


def test_jitter_is_a_product_of_pillows_enhancers() -> None:
    image = photo(50, 60)
    tensor = decode(encoded(image, "PNG"))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    orders = set()
    for key in range(40):
        draws = augment.uniform(key_of(key, "jitter"), torch.arange(4)).tolist()
        order = augment._ORDERS[int(draws[3] * 6)]
        expected = image
        for step in order:
            expected = enhancers[step](expected).enhance(1 + 0.4 * (2 * draws[step] - 1))
        found = as_array(jittered(tensor, 0.4, key))
        # Pillow rounds after each of the three, and takes the mean of grey as a whole number.
        assert np.abs(found - np.asarray(expected).astype(int)).max() <= 4
        orders.add(order)
    assert len(orders) == 6


def test_pictures_come_channels_last() -> None:
    content = encoded(photo(90, 70))
    for sample in range(12):
        found = training_picture(content, seed=0, epoch=0, sample=sample, size=16)
        assert (found.dtype, tuple(found.shape), found.stride()) == (torch.uint8, (3, 16, 16), (1, 48, 3))


def test_normalised() -> None:
    batch = torch.stack([evaluation_picture(encoded(photo(80, 90, seed))) for seed in range(2)])
    found = normalised(batch)
    expected = (batch.double() / 255 - torch.tensor(augment.MEAN).double()[:, None, None]) / torch.tensor(
        augment.DEVIATION
    ).double()[:, None, None]
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 1e-5
    assert normalised(batch, torch.bfloat16).dtype == torch.bfloat16
