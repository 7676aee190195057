"""Features that the forward pass of one model leaves for heads of others, which stand on copies of its first blocks.

A bridge is such a head (:mod:`nt_pretrain.methods.bridge`). Features are kept as they leave a block, so what the head
says of them is what it would say behind its own copy of the trunk, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nt_pretrain.eval.voices import Part, Voices
from nt_pretrain.models.multihead import MultiHead, TwoTrunks


class Features:
    """Those of one batch."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Tensor] = {}

    def put(self, model: MultiHead, depth: int, features: Tensor) -> None:
        """What ``model`` has put out behind its first ``depth`` blocks."""
        self._kept[id(model), depth] = features

    def read_by(self, part: Part) -> Tensor | None:
        """What the heads of ``part`` start from; None where it reads no other trunk, or that has not run yet."""
        depth = trunk_depth(part.model)
        found = [self._kept.get((id(model), depth)) for model in part.trunks]
        kept = [each for each in found if each is not None]
        if not kept or len(kept) < len(found):
            return None
        trunk = part.model.trunk
        return torch.cat(kept, dim=trunk.dim) if isinstance(trunk, TwoTrunks) else kept[0]


@contextmanager
def kept_features(voices: Voices) -> Iterator[Features]:
    """Around one batch: models whose trunks others read leave what these need."""
    features, handles = Features(), {}
    for part in voices.parts:
        depth = trunk_depth(part.model) if part.trunks else 0
        for model in part.trunks:
            if (id(model), depth) not in handles:
                block = list(model.trunk.blocks)[depth - 1]
                handles[id(model), depth] = block.register_forward_hook(_keeping(partial(features.put, model, depth)))
    try:
        yield features
    finally:
        for handle in handles.values():
            handle.remove()


def trunk_depth(model: MultiHead) -> int:
    """Blocks of the trunk, of two trunks those of each; 0 without one."""
    trunk: Any = model.trunk.parts[0] if isinstance(model.trunk, TwoTrunks) else model.trunk
    return 0 if trunk is None else len(trunk.blocks)


def _keeping(put: Callable[[Tensor], None]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
        put(output)

    return hook
