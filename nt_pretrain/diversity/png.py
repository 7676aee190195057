"""Pictures as PNG files: a format simple enough to be written in a few lines, the same bytes everywhere."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(picture: Tensor) -> bytes:
    """The file of a picture, uint8 [3, Y, X]."""
    _, height, width = picture.shape
    rows = picture.permute(1, 2, 0).reshape(height, width * 3)
    lines = torch.cat([rows.new_zeros(height, 1), rows], dim=1)  # no line is predicted from another
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(lines.contiguous().numpy().tobytes(), 9)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
