"""The set that an evaluation measures on, opened: what it holds, and its batches on these ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nt_pretrain.config.schema import Config
from nt_pretrain.data.sources import Sources
from nt_pretrain.eval.calibration import CLASSWISE
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.together import on_all
from nt_pretrain.train.validation import labelled_batches, text_batches


@dataclass(frozen=True)
class ValidationSet:
    """A validation split as batches of one size; every rank brings as many.

    Attributes:
        units: what is measured, in words: targets of text, pictures, or rows.
        labels_per_sample: of a sequence, picture or row, at most.
        locations: of the corpora.
        fingerprints: of what they hold.
        rounds: batches of each rank.
        read: opens the batches anew; reading them is collective.
    """

    units: str
    classes: int
    labels_per_sample: int
    locations: list[str]
    fingerprints: list[str]
    rounds: int
    read: Callable[[], Iterator[Inputs]]

    @property
    def classwise(self) -> int:
        """Classes whose own calibration is measured: those of labels, unless they are too many."""
        return self.classes if self.units != "targets" and self.classes <= CLASSWISE else 0


def validation_set(config: Config, ranks: Ranks, *, foreign: bool = False) -> ValidationSet:
    """The validation split that ``config`` names. Collective.

    Args:
        foreign: labels are not looked at, so that samples may be of other classes; of the model's kind all the same.

    Raises:
        DataError: on all ranks, when it cannot be read or does not fit the model.
    """
    # Opened without more, samples may have any classes.
    opened = Sources.open if foreign and config.model.classifies else Sources.of_model
    sources = on_all(ranks, lambda: opened(config, "validation"))
    locations = [split.location for split in sources.splits]
    fingerprints = [split.manifest.fingerprint for split in sources.splits]
    if sources.kind != "text":
        total = sum(sources.documents.values())
        total = min(total, config.eval.sequences) if config.eval.sequences else total
        rounds = -(-total // (ranks.sizes.data * config.eval.micro_batch))
        return ValidationSet(
            sources.kind, config.model.classes, 1, locations, fingerprints, rounds,
            lambda: labelled_batches(config, ranks),
        )  # fmt: skip
    sequences = list(text_batches(config, ranks))
    return ValidationSet(
        "targets", config.model.vocab_size, config.data.sequence_length, locations, fingerprints, len(sequences),
        lambda: iter(sequences),
    )  # fmt: skip
