"""What is done to a picture before a model sees it: pure functions of pixels and, for chance, of (seed, epoch, sample).

Training: RandomResizedCrop (Szegedy et al., arXiv 1409.4842) and a mirror image half the time, optionally colour
jitter. Evaluation: the shorter side to 256 pixels, the central 224 of it. Both are bilinear with antialiasing, within
one level of Pillow's. No generator state: whoever decodes a sample in an epoch gets the same crop of it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nt_pretrain.counter_random import key_of, uniform
from nt_pretrain.data.images import REDUCTIONS, decode, size_of

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels red, green, blue, in parts of 255; those of the published models."""
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""Shares of the picture that a crop covers, and its width by height before it is resized to a square."""
ATTEMPTS = 10
_ORDERS = tuple(itertools.permutations(range(3)))
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def training_picture(
    content: bytes,
    *,
    seed: int,
    epoch: int,
    sample: int | str,
    size: int = 224,
    area: tuple[float, float] = AREA,
    jitter: float = 0.0,
) -> Tensor:
    """A random part of an image file, mirrored or not: uint8 [3, size, size] with the strides of channels_last.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where the crop has that many pixels to spare.

    Args:
        sample: what names the sample in its data; with seed and epoch it decides everything.
        area: shares of the picture a crop covers, least and most.
        jitter: strength of colour jitter, 0 for none (0.4 is common).

    Raises:
        ImageError: the file cannot be decoded.
    """
    key = key_of(seed, "picture", epoch, sample)
    box = random_box(*size_of(content), key, area=area)
    reduce = next((r for r in REDUCTIONS if min(box.height, box.width) >= r * size), 1)
    found = resized(decode(content, reduce), reduced(box, reduce), (size, size))
    if key_of(key, "mirror") & 1:  # a bit of a hash: a tensor of one number would cost as much as the whole box
        found = found.flip(2)
    return jittered(found, jitter, key) if jitter else found


def evaluation_picture(content: bytes, *, size: int = 224, shorter: int = 256) -> Tensor:
    """The centre of an image file: its shorter side resized to ``shorter``, then uint8 [3, size, size] cut out.

    Always decoded whole: figures stay comparable with published ones.

    Raises:
        ImageError: the file cannot be decoded.
    """
    assert size <= shorter, f"no {size} pixels in {shorter}"
    image = decode(content)
    height, width = image.shape[1:]
    # int(), not round(): torchvision's Resize cuts off, and one column more would move the centre
    if height <= width:
        to = shorter, int(shorter * width / height)
    else:
        to = int(shorter * height / width), shorter
    image = resized(image, Box(0, 0, height, width), to)
    top, left = round((to[0] - size) / 2), round((to[1] - size) / 2)
    return image[:, top : top + size, left : left + size]


def random_box(
    height: int, width: int, key: int, *, area: tuple[float, float] = AREA, aspect: tuple[float, float] = ASPECT
) -> Box:
    """The crop that ``key`` draws of a picture.

    An area and a logarithm of the aspect ratio, both uniform; if the box does not fit, draw again, after ten attempts
    take the largest central box whose aspect ratio is allowed. Its place is uniform over all that fit.
    """
    draws = uniform(key_of(key, "box"), torch.arange(2 * ATTEMPTS + 2)).tolist()
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for first, second in zip(draws[0 : 2 * ATTEMPTS : 2], draws[1 : 2 * ATTEMPTS : 2], strict=True):
        target = height * width * (area[0] + first * (area[1] - area[0]))
        ratio = math.exp(low + second * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1))
            return Box(top, left, h, w)
    w, h = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
    w, h = max(w, 1), max(h, 1)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def reduced(box: Box, reduce: int) -> Box:
    """The box in a picture decoded at 1 / ``reduce``: each side to the nearest pixel, none outside the picture."""
    top, left = round(box.top / reduce), round(box.left / reduce)
    return Box(top, left, max(1, box.height // reduce), max(1, box.width // reduce))


def resized(image: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """The box of a uint8 [3, H, W] picture at ``size`` (height, width): uint8, strides of channels_last."""
    part = image[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    part = part.contiguous(memory_format=torch.channels_last)
    if part.shape[2:] == size:
        return part[0]
    found = functional.interpolate(part, size, mode="bilinear", antialias=True)
    # Where the box is as wide as the picture, interpolate takes the view for a plain one and answers in kind.
    return found.contiguous(memory_format=torch.channels_last)[0]


def jittered(image: Tensor, strength: float, key: int) -> Tensor:
    """Brightness, contrast and saturation of a uint8 [3, H, W] picture, each times 1 ± ``strength``, in random order.

    The result is rounded once, after the last of the three.
    """
    draws = uniform(key_of(key, "jitter"), torch.arange(4)).tolist()
    factors = [max(0.0, 1.0 + strength * (2.0 * draw - 1.0)) for draw in draws[:3]]
    found = image.to(torch.float32)
    grey = torch.tensor(_GREY)[:, None, None]
    for step in _ORDERS[int(draws[3] * len(_ORDERS))]:
        if step == 0:
            other = torch.zeros(())
        else:
            light = (found * grey).sum(0, keepdim=True)
            other = light.mean() if step == 1 else light
        found = (other + factors[step] * (found - other)).clamp_(0.0, 255.0)
    return found.round_().to(torch.uint8)


def normalised(batch: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pictures as a model takes them: [N, 3, H, W] from 0 to 255 to zero mean and unit deviation, channels_last; or
    several side by side, [N, 3 * M, H, W].

    On whatever device the batch lies: a GPU is sent bytes, not four times as many of floats.
    """
    beside = batch.shape[1] // len(MEAN)
    mean = torch.tensor(MEAN * beside, device=batch.device).mul_(255.0)[:, None, None]
    scale = torch.tensor(DEVIATION * beside, device=batch.device).mul_(255.0).reciprocal_()[:, None, None]
    # A copy also of floats, which pictures are once they were mixed.
    found = batch.contiguous(memory_format=torch.channels_last).to(torch.float32, copy=True).sub_(mean).mul_(scale)
    return found.to(dtype)
