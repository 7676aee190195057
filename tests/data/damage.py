"""Damage done to real shards, one fault at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nt_pretrain.data.shards import index_path


def flip(shard: Path, document: int, byte: int = 3) -> None:
    """Change one bit of a document."""
    content = bytearray(shard.read_bytes())
    content[int(np.load(index_path(shard))[document]["offset"]) + byte] ^= 1
    shard.write_bytes(content)


def cut(shard: Path, size: int) -> None:
    """Keep the first ``size`` bytes."""
    shard.write_bytes(shard.read_bytes()[:size])
