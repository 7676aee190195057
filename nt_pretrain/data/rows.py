"""Rows of numbers as bytes: each the npy file of a vector of fp32, so that other readers of tars know them too."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

DTYPE = np.dtype("<f4")


def encoded(row: np.ndarray) -> bytes:
    """A row [features] as an npy file; numbers become fp32."""
    return _header(len(row)) + np.ascontiguousarray(row, DTYPE).tobytes()


def decoded(content: bytes, features: int) -> np.ndarray:
    """The row [features] (fp32, read-only) of a file that :func:`encoded` made.

    Raises:
        ValueError: it is no such file, or of another number of features.
    """
    header = _header(features)
    if len(content) != len(header) + features * DTYPE.itemsize or not content.startswith(header):
        raise ValueError(f"{len(content)} bytes are no npy file of {features} numbers of fp32")
    return np.frombuffer(content, DTYPE, offset=len(header))


@lru_cache
def _header(features: int) -> bytes:
    """What numpy writes before the numbers: the same for every row, so that none is parsed."""
    file = io.BytesIO()
    np.save(file, np.zeros(features, DTYPE))
    return file.getvalue()[: -features * DTYPE.itemsize]
