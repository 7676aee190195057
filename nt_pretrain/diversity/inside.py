"""The numbers of what differs inside: similarity of every block, and units matched between voices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nt_pretrain.diversity.activations import Batch, activations
from nt_pretrain.diversity.cka import centred_gram, cka_matrix
from nt_pretrain.diversity.matching import Matching, match
from nt_pretrain.diversity.voice import Voice, block_site, own_from, unit_site

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it and of how much."""


@dataclass(frozen=True)
class BlockCompared:
    """One block that voices do not share.

    Attributes:
        number: from 0, of all blocks.
        cka: of what leaves the block, fp64 [V, V].
        unit_cka: of its hidden units, where these are not what leaves it (feed-forward layers); else None.
        matchings: of the first voice's units with those of each other voice.
        units: activations [N, places, units] of every voice.
    """

    number: int
    cka: Tensor
    unit_cka: Tensor | None
    matchings: list[Matching]
    units: list[Tensor]


@dataclass(frozen=True)
class Inside:
    """All blocks that voices do not share; ``shared`` come before them, of ``depth``; ``samples`` were compared."""

    shared: int
    depth: int
    samples: int
    blocks: list[BlockCompared]


def compare(voices: list[Voice], batches: Sequence[Batch], progress: Progress) -> Inside:
    """Compare voices block by block; those of different depth as far as the shallowest goes.

    Raises:
        ValueError: there are fewer than 4 probe samples.
    """
    depth, first = min(len(voice.blocks) for voice in voices), own_from(voices)
    numbers = range(first, depth)
    tables: list[list[Tensor]] = []
    for done, voice in enumerate(voices):
        blocks = [voice.blocks[number] for number in numbers]
        sites = [block_site(block) for block in blocks] + [unit_site(block) for block in blocks]
        tables.append(activations(voice, sites, batches))
        progress("activations", done + 1, len(voices))
    compared = []
    for at, number in enumerate(numbers):
        outputs, units = [each[at] for each in tables], [each[len(numbers) + at] for each in tables]
        matchings = [match(units[0], other) for other in units[1:]]
        hidden = unit_site(voices[0].blocks[number]) != block_site(voices[0].blocks[number])
        compared.append(BlockCompared(number, _cka(outputs), _cka(units) if hidden else None, matchings, units))
        progress("matching", at + 1, len(numbers))
    samples = len(tables[0][0]) if compared else 0
    return Inside(first, depth, samples, compared)


def _cka(tables: list[Tensor]) -> Tensor:
    return cka_matrix([centred_gram(each) for each in tables])
