"""One voice of an ensemble as a plain network: what every comparison of insides takes a list of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.network import context_of

Forward = Callable[[Tensor, Tensor | None], Tensor]
"""From inputs as the network takes them, and the documents of tokens (None of other inputs), to logits."""


@dataclass(frozen=True)
class Voice:
    """One head with its trunk, or any other network that gives logits.

    Attributes:
        name: for people, unique among those compared.
        forward: in evaluation mode, differentiable.
        blocks: in the order of depth. A block that two voices share is the same module in both.
        masks: the topology of its sparse layers, flat bool, by names that are alike in all voices.
        speaks: False for what was only made on the way, such as a parent: compared, and no part of the ensemble.
    """

    name: str
    forward: Forward
    blocks: list[nn.Module]
    masks: dict[str, Tensor] = field(default_factory=dict)
    speaks: bool = True


@dataclass(frozen=True)
class Site:
    """Where activations are read: what ``module`` gives, or, with ``before``, its input."""

    module: nn.Module
    before: bool = False


def voices_of(model: MultiHead, section: ModelSection, names: list[str]) -> list[Voice]:
    """A voice for each head of a model of plain modules, which is put into evaluation mode; ``names`` of the heads."""
    model.eval()
    heads = list(model.heads.values())
    trunk = [] if model.trunk is None else list(model.trunk.blocks)
    return [
        Voice(name, _forward(model, head, section), [*trunk, *_blocks(head)])
        for name, head in zip(names, heads, strict=True)
    ]


def block_site(block: nn.Module) -> Site:
    """What leaves a block: hidden states [B, T, H], maps [B, C, Y, X] or features [B, W]."""
    return Site(block)


def unit_site(block: nn.Module) -> Site:
    """The units of a block that mean something one by one: the hidden units of a transformer's feed-forward layer
    (after activation and gate), else the channels or features that leave the block.
    """
    down = getattr(getattr(block, "ffn", None), "down", None)
    return Site(down, before=True) if isinstance(down, nn.Module) else Site(block)


def own_from(voices: list[Voice]) -> int:
    """The number of the first block that not all voices share; the number of blocks where all are shared."""
    depth = min(len(voice.blocks) for voice in voices)
    first = voices[0].blocks
    shared = (all(voice.blocks[at] is first[at] for voice in voices[1:]) for at in range(depth))
    return next((at for at, same in enumerate(shared) if not same), depth) if len(voices) > 1 else 0


def _blocks(head: nn.Module) -> list[nn.Module]:
    blocks = head.blocks
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _forward(model: MultiHead, head: nn.Module, section: ModelSection) -> Forward:
    def forward(inputs: Tensor, documents: Tensor | None) -> Tensor:
        context = context_of(section, documents)
        logits: Tensor = head(model.trunk_output(inputs, context), context)
        return logits

    return forward
