"""The batches of an evaluation: validation sequences or pictures, read together on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nt_pretrain.config.schema import Config
from nt_pretrain.data.sources import Sources
from nt_pretrain.data.validation import validation_batches
from nt_pretrain.eval.gather import Batch
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.step import split_targets
from nt_pretrain.train.together import on_all

CLASSWISE = 1000
"""Most classes for which each class's own calibration is measured."""


@dataclass(frozen=True)
class ValidationSet:
    """A validation split as batches of one size; every rank brings as many.

    Attributes:
        units: what is measured, in words: targets of text, or pictures.
        labels_per_sample: of a sequence or picture, at most.
        locations: of the corpora.
        fingerprints: of what they hold.
        rounds: batches of each rank.
        read: opens the batches anew.
    """

    units: str
    classes: int
    labels_per_sample: int
    locations: list[str]
    fingerprints: list[str]
    rounds: int
    read: Callable[[], Iterator[Batch]]

    @property
    def classwise(self) -> int:
        """Classes whose own calibration is measured: those of pictures, unless they are too many."""
        return self.classes if self.units == "pictures" and self.classes <= CLASSWISE else 0


def validation_set(config: Config, ranks: Ranks) -> ValidationSet:
    """The validation split that ``config`` names, opened. Collective.

    Raises:
        DataError: on all ranks, when it cannot be read or does not fit the model.
    """
    sources = on_all(ranks, lambda: Sources.of_text(config, "validation"))
    locations = [split.location for split in sources.splits]
    fingerprints = [split.manifest.fingerprint for split in sources.splits]
    batches = on_all(ranks, lambda: list(_text(config, ranks)))
    return ValidationSet(
        units="targets",
        classes=config.model.vocab_size,
        labels_per_sample=config.data.sequence_length,
        locations=locations,
        fingerprints=fingerprints,
        rounds=len(batches),
        read=lambda: iter(batches),
    )


def _text(config: Config, ranks: Ranks) -> Iterator[Batch]:
    for tokens, documents in validation_batches(config, rank=ranks.data_rank, world=ranks.sizes.data):
        yield split_targets(tokens, documents)
