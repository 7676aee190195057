"""Loaded models under harms of its inputs and weights, and on other corpora."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.data.validation import validation_text
from nt_pretrain.eval.corrupted_set import Corruptor
from nt_pretrain.eval.gather import gather_measures
from nt_pretrain.eval.harms import Harm, harms_of
from nt_pretrain.eval.robustness import Robustness, Samples, measure_all
from nt_pretrain.eval.row_noise import RowNoise
from nt_pretrain.eval.text_noise import with_typing_errors
from nt_pretrain.eval.voices import Voices
from nt_pretrain.evaluation.target import of_other_data
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.together import on_all
from nt_pretrain.train.validation import labelled_batches

SEED = 0
"""Of all harms: two evaluations hit the same pixels, characters and weights."""


def harms_named(words: str | None, config: Config) -> list[Harm]:
    """The harms that a command line names: ``all``, or names with commas between; none for None.

    Raises:
        ConfigErrors: one is not known, or is of the other kind of data.
    """
    if words is None:
        return []
    try:
        names = () if words == "all" else tuple(words.split(","))
        return harms_of(names, data=config.model.data)
    except ValueError as error:
        raise ConfigErrors([str(error)]) from None


def robustness_of(
    config: Config,
    voices: Voices,
    ranks: Ranks,
    harms: Sequence[Harm],
    domains: Sequence[str],
    progress: Callable[[str, int, int], None],
) -> Robustness:
    """Measure under every harm, and on the corpora ``domains``. Collective.

    Args:
        config: of the data.

    Raises:
        DataError: on all ranks; a set cannot be read, or typing errors are wanted of shards that hold tokens.
    """

    return measure_all(
        lambda batches: gather_measures(voices, batches, ranks),
        partial(_samples, config, ranks),
        harms,
        models=voices.models,
        seed=SEED,
        domains={path: partial(_samples, of_other_data(config, path), ranks, None) for path in domains},
        progress=lambda done, total, what: progress(f"robustness {what}", done, total),
    )


def _samples(config: Config, ranks: Ranks, harm: Harm | None) -> Samples:
    """This rank's part of the set under a harm of its inputs."""
    if config.model.classifies:
        corruptor = Corruptor if config.model.sees_pictures else RowNoise
        change = None if harm is None else corruptor(harm.name, harm.severity, SEED)
        return Samples(labelled_batches(config, ranks, change))
    disturb = None if harm is None else partial(_with_errors, harm.name, harm.amount[0])
    found = on_all(ranks, lambda: validation_text(config, disturb=disturb))
    batches = found.batches(config, rank=ranks.data_rank, world=ranks.sizes.data)
    return Samples([Inputs.of_text(*batch) for batch in batches], found.characters)


def _with_errors(kind: str, rate: float, text: str, name: str) -> str:
    return with_typing_errors(text, kind, rate, seed=SEED, sample=name)
