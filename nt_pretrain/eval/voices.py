"""Who speaks in an ensemble: the heads of one model, or of several that may differ in all but their classes.

A part is a model with the heads of it that speak; a single checkpoint is the case of one part. The logits of all parts
stand one after the other, [sum of heads, N, C], and nothing that is measured of them knows where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn

from nt_pretrain.config.schema import Config
from nt_pretrain.eval.members import head_names, member_names
from nt_pretrain.models.multihead import MultiHead


@dataclass(frozen=True)
class Part:
    """One model that speaks.

    Attributes:
        config: its own.
        heads: numbers of those that speak, ascending; where members share one head, of these members.
        around: entered around each of its forward passes.
        trunks: models before it whose trunks begin like its own, so that its heads read what these compute; empty: it
            runs its own.
    """

    model: MultiHead
    config: Config
    heads: tuple[int, ...]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    trunks: tuple[MultiHead, ...] = ()


@dataclass(frozen=True)
class Voices:
    """All that speak.

    Attributes:
        names: of the voices: the heads of the first part, those of the next, ...

    Raises:
        ValueError: not as many names as heads, or one that cannot be told from another's.
    """

    parts: tuple[Part, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = sum(len(part.heads) for part in self.parts)
        if count != len(self.names) or not count:
            raise ValueError(f"{len(self.names)} names for {count} heads that speak")
        if twice := ambiguous(self.names):
            raise ValueError(f"voices {list(self.names)}: {', '.join(twice)} cannot be told from another name")

    @staticmethod
    def of(model: MultiHead, config: Config) -> Voices:
        """All heads of one model: ``head_0``, ``head_1``, ..."""
        return Voices((Part(model, config, tuple(range(config.model.voices))),), head_names(config.model.voices))

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def models(self) -> list[nn.Module]:
        """Each of them once."""
        return list({id(part.model): part.model for part in self.parts}.values())


def ambiguous(names: Sequence[str]) -> list[str]:
    """Those that stand twice, or are the name of a member that every set has."""
    taken = {*member_names(()), "mean_head", "set"}
    return sorted({name for name in names if name in taken or list(names).count(name) > 1})
