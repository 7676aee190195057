"""The checkpoints that speak, found and loaded on these ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import Found
from nt_pretrain.eval.voices import Part, Voices
from nt_pretrain.evaluation.chosen import Chosen, Speaker
from nt_pretrain.evaluation.load import Loaded, find, load
from nt_pretrain.parallel.mesh import Ranks


def find_all(chosen: Chosen, ranks: Ranks) -> list[Found]:
    """The checkpoint of every speaker, its files checked; nothing is loaded. Collective.

    Raises:
        CheckpointError, DataError: as :func:`nt_pretrain.evaluation.load.find`; it names the member.
    """
    found = []
    for each in chosen.speakers:
        with _naming(each):
            found.append(find(each.target, each.config, ranks))
    return found


def load_all(found: Sequence[Found], chosen: Chosen, ranks: Ranks, *, average: bool = False) -> list[Loaded]:
    """The models of checkpoints that :func:`find_all` has found, all at once in memory. Collective.

    Raises:
        CheckpointError: as :func:`nt_pretrain.evaluation.load.load`; it names the member.
    """
    loaded = []
    for each, one in zip(chosen.speakers, found, strict=True):
        with _naming(each):
            loaded.append(load(one, each.config, ranks, average=average))
    return loaded


def voices_of(chosen: Chosen, loaded: Sequence[Loaded]) -> Voices:
    """All heads that speak, those of the first checkpoint first."""
    parts = [Part(one.model, each.config, each.heads) for each, one in zip(chosen.speakers, loaded, strict=True)]
    return Voices(tuple(parts), tuple(chosen.voices))


@contextmanager
def _naming(speaker: Speaker) -> Iterator[None]:
    """What is wrong with a checkpoint is told with the member's name."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"member {speaker.name}: {error}" if speaker.name else str(error)) from None
