"""Corruptions of pictures at severities 1 to 5: the families of ImageNet-C that need nothing beyond torch and Pillow.

Hendrycks and Dietterich (ICLR 2019), with the constants of their code, own implementations. Their lengths in pixels are
for pictures of 224; here they are scaled by the shorter side / 224, so that small pictures are harmed alike (their
CIFAR-10-C has its own constants, so figures on small pictures compare only with one another). Pictures are uint8
[3, H, W]; x below is a pixel's value in parts of 255, results are clipped to [0, 1] and rounded. Chance is a counter:
(seed, corruption, severity, sample) and the pixel decide, never a generator's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.counter_random import key_of
from nt_pretrain.eval.corruption_blur import defocus_blur, gaussian_blur, motion_blur
from nt_pretrain.eval.corruption_light import brightness, contrast, fog, saturation
from nt_pretrain.eval.corruption_noise import gaussian_noise, impulse_noise, shot_noise
from nt_pretrain.eval.corruption_resolution import jpeg, pixelate

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """What is done to x, fp64 [3, H, W] in [0, 1], with the amount of each severity and a key for chance."""

    apply: Callable[[Tensor, tuple[float, ...], int], Tensor]
    amounts: tuple[tuple[float, ...], ...]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": Corruption(shot_noise, ((60.0,), (25.0,), (12.0,), (5.0,), (3.0,))),
    "impulse_noise": Corruption(impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "gaussian_blur": Corruption(gaussian_blur, ((1.0,), (2.0,), (3.0,), (4.0,), (6.0,))),
    "defocus_blur": Corruption(defocus_blur, ((3.0,), (4.0,), (6.0,), (8.0,), (10.0,))),
    "motion_blur": Corruption(motion_blur, ((10.0, 3.0), (15.0, 5.0), (15.0, 8.0), (15.0, 12.0), (20.0, 15.0))),
    "brightness": Corruption(brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": Corruption(contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "saturation": Corruption(saturation, ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))),
    "fog": Corruption(fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    "pixelate": Corruption(pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg": Corruption(jpeg, ((25.0,), (18.0,), (15.0,), (10.0,), (7.0,))),
}


def corrupted(picture: Tensor, name: str, severity: int, *, seed: int, sample: int | str) -> Tensor:
    """The picture, uint8 [3, H, W], corrupted: a new tensor of the same shape.

    Raises:
        ValueError: the picture is none, or there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r} is not known; choose one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} of {name} is not known; it is 1 (mild) to 5 (strong)")
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(f"a picture is uint8 [3, height, width], not {picture.dtype} {list(picture.shape)}")
    corruption = CORRUPTIONS[name]
    key = key_of(seed, "corruption", name, severity, sample)
    changed = corruption.apply(picture.double() / 255.0, corruption.amounts[severity - 1], key)
    return (changed.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
