"""Image files to pixels: RGB uint8 tensors, the same whichever decoder is installed.

JPEG goes to simplejpeg where it is installed (extra `images`), all else and whatever that refuses to Pillow. Both are
libjpeg-turbo and give the same pixels, also at the scales 1/2, 1/4 and 1/8 of its scaled decoding, so a run may move
between machines with and without simplejpeg.

What an image file may hold, and what becomes of it (as in the literature's loaders, which call Pillow's
``convert("RGB")``):

| grey, grey + alpha, palette | three channels |
| CMYK JPEG | RGB by Pillow's conversion, Adobe's inverted values understood |
| 16 bits a channel | the upper 8 (Pillow alone would clip 16-bit grey to white) |
| alpha | dropped; the colours under it show |
| EXIF orientation | not applied: the figures published for ImageNet come from pixels as they are stored |
| PNG named .JPEG | known by its first bytes; names are never looked at |
| several pictures (MPO, WebP) | the first |
| truncated, damaged, huge, empty | :class:`ImageError` with a kind |
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

try:
    import simplejpeg
except (ImportError, RuntimeError):  # RuntimeError: a wheel whose libraries do not fit the machine
    simplejpeg = None

Kind = Literal["empty", "not an image", "too large", "truncated", "damaged"]
Extension = Literal["jpg", "png", "webp"]
MOST_PIXELS = 80_000_000
"""A larger image is refused before it is decoded: a file of kilobytes may claim gigabytes of pixels."""
REDUCTIONS = (8, 4, 2)
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
"""Only these are ever given to Pillow: some of its other formats start programs."""
_CANNOT = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow raises for damaged files."""


class ImageError(Exception):
    """An image that cannot be decoded; ``kind`` is the reason to count it under."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def extension_of(content: bytes) -> Extension:
    """What the first bytes say the file is.

    Raises:
        ImageError: it is empty, or neither JPEG, PNG nor WebP.
    """
    if not content:
        raise ImageError("empty", "no bytes")
    if content[:3] == b"\xff\xd8\xff":
        return "jpg"
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    raise ImageError("not an image", f"neither JPEG, PNG nor WebP; it begins with {content[:8]!r}")


def size_of(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
        ImageError: there is none, or it tells of more than :data:`MOST_PIXELS`.
    """
    if simplejpeg is not None and extension_of(content) == "jpg":
        try:
            height, width = simplejpeg.decode_jpeg_header(content)[:2]
        except ValueError:
            pass  # Pillow understands more headers
        else:
            return _sane(height, width)
    with _opened(content) as image:
        return image.height, image.width


def decode(content: bytes, reduce: int = 1) -> Tensor:
    """The pixels of an image file: uint8 [3, H, W], with the strides of channels_last.

    Args:
        reduce: 1, 2, 4 or 8. A JPEG is decoded at that part of its height and width, rounded up, which costs less
            than decoding all of it and is what its own transform gives there; other formats have no such decoding and
            are averaged over squares of that side, so that every caller finds the size it asked for.

    Raises:
        ImageError: it cannot be decoded.
    """
    return torch.from_numpy(pixels(content, reduce)).permute(2, 0, 1)


def pixels(content: bytes, reduce: int = 1) -> np.ndarray:
    """As :func:`decode`, but uint8 [H, W, 3]."""
    assert reduce == 1 or reduce in REDUCTIONS, f"images are reduced by 2, 4 or 8, not by {reduce}"
    if simplejpeg is not None and extension_of(content) == "jpg":
        found = _simplejpeg(content, reduce)
        if found is not None:
            return found
    return _pillow(content, reduce)


def check(content: bytes) -> None:
    """Decode every pixel with Pillow alone, so that the verdict is the same with and without simplejpeg.

    Raises:
        ImageError: it cannot be decoded.
    """
    _pillow(content, 1)


def _simplejpeg(content: bytes, reduce: int) -> np.ndarray | None:
    """None where Pillow has to see to it: CMYK, whose conversions differ, and what strict decoding refuses."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
        _sane(height, width)
        if space not in ("YCbCr", "Gray"):
            return None
        least = -(-height // reduce), -(-width // reduce)
        found: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", min_height=least[0], min_width=least[1])
    except ValueError:
        return None
    return found if found.shape[:2] == least else None


def _pillow(content: bytes, reduce: int) -> np.ndarray:
    with _opened(content) as image:
        wanted = -(-image.width // reduce), -(-image.height // reduce)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd EXIF data and the like: the pixels are what counts
                if reduce > 1 and image.format in ("JPEG", "MPO"):
                    # draft takes the largest reduction that leaves at least this size.
                    image.draft(None, (max(1, image.width // reduce), max(1, image.height // reduce)))
                image.load()
                found = _rgb(image)
        except MemoryError:
            raise ImageError("too large", f"{image.width:,} x {image.height:,} pixels do not fit into memory") from None
        except _CANNOT as error:
            text = str(error)
            cut = any(word in text for word in ("truncated", "unrecognized data stream", "Truncated", "end of file"))
            raise ImageError("truncated" if cut else "damaged", text or type(error).__name__) from None
        if found.size != wanted:
            found = found.reduce(reduce)
        return np.array(found)  # a copy: tensors must be writable


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _opened(content: bytes) -> Image.Image:
    """The header, read by Pillow.

    Raises:
        ImageError: it cannot be read, or tells of too many pixels.
    """
    extension = extension_of(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, milder bound on pixels
            image = Image.open(io.BytesIO(content), formats=(_FORMATS[extension],))
    except Image.DecompressionBombError as error:
        raise ImageError("too large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("damaged", f"the header of this {_FORMATS[extension]} cannot be read") from None
    except _CANNOT as error:
        raise ImageError("damaged", str(error) or type(error).__name__) from None
    _sane(image.height, image.width)
    return image


def _sane(height: int, width: int) -> tuple[int, int]:
    if height * width > MOST_PIXELS:
        raise ImageError("too large", f"{width:,} x {height:,} pixels; at most {MOST_PIXELS:,} are decoded")
    if height * width == 0:
        raise ImageError("damaged", f"{width} x {height} pixels")
    return height, width
