"""Corruptions that lose detail: fewer pixels, a coarse JPEG. Pictures are fp64 [3, H, W] in [0, 1]."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixelate(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Shrunk to a share c of each side by means over boxes, enlarged again to the nearest pixel (Pillow)."""
    picture = _to_pillow(x)
    width, height = picture.size
    small = (max(int(width * amount[0]), 1), max(int(height * amount[0]), 1))
    shrunk = picture.resize(small, Image.Resampling.BOX)
    return _from_pillow(shrunk.resize((width, height), Image.Resampling.NEAREST)).to(x)


def jpeg(x: Tensor, amount: tuple[float, ...], key: int) -> Tensor:
    """Written as a JPEG of quality c and read again (Pillow, 4:2:0)."""
    buffer = io.BytesIO()
    _to_pillow(x).save(buffer, "JPEG", quality=int(amount[0]))
    with Image.open(io.BytesIO(buffer.getvalue())) as picture:
        return _from_pillow(picture).to(x)


def _to_pillow(x: Tensor) -> Image.Image:
    return Image.fromarray((x * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy())


def _from_pillow(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float64)).permute(2, 0, 1) / 255.0
