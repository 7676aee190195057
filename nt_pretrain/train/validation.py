"""The validation of a run while it trains: always the same samples, on all ranks, each counted once."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.data.validation import Change, unigram_counts, validation_batches, validation_samples
from nt_pretrain.eval.calibration import CLASSWISE
from nt_pretrain.eval.diversity import disagreement_matrix
from nt_pretrain.eval.gather import gather_measures
from nt_pretrain.eval.measure import Measures
from nt_pretrain.eval.readings import readings_of
from nt_pretrain.eval.validate import unigram_loss, validate
from nt_pretrain.eval.voices import Voices
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.train.ema import swapped
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.together import on_all


class Validated(NamedTuple):
    """Readings named in docs/RUNDIR.md, and figures by their names, on rank 0."""

    values: dict[str, float]
    figures: dict[str, Path]


class Validation:
    """Measures heads and ensemble; of text also the unigram level they are held against.

    Args:
        warn: told why there are no figures, on rank 0.
    """

    def __init__(
        self, config: Config, state: TrainState, ranks: Ranks, rundir: RunDir, warn: Callable[[str], None]
    ) -> None:
        self._config, self._state, self._ranks, self._rundir, self._warn = config, state, ranks, rundir, warn
        self._unigram: float | None = None
        if config.eval.unigram_tokens and not config.model.classifies:
            counts = torch.from_numpy(on_all(ranks, lambda: unigram_counts(config, config.eval.unigram_tokens)))
            self._unigram = unigram_loss(counts, text_batches(config, ranks), ranks)

    def of(self, config: Config) -> Validation:
        """The same in another phase of the run, on the same data."""
        other = copy.copy(self)
        other._config = config
        return other

    def measure(self) -> Validated:
        """Of the weights; and of their moving average, if there is one, as ``validation_ema/...``. Collective.

        Raises:
            DataError: on all ranks, if the validation set cannot be read.
        """
        values, measures = self._measured()
        found = Validated(values, self._figures(measures) if measures is not None else {})
        if self._state.average is not None:
            with swapped(self._state.average, self._state.model):
                averaged, _ = self._measured()
            found.values.update({key.replace("/", "_ema/", 1): value for key, value in averaged.items()})
        return found

    def _measured(self) -> tuple[dict[str, float], Measures | None]:
        """Of the weights as they are: readings, and all measures where they are taken."""
        config, ranks, model = self._config, self._ranks, self._state.model
        voices = Voices.of(model, config)
        if config.model.classifies:
            classwise = config.model.classes if config.model.classes <= CLASSWISE else 0
            measures = gather_measures(voices, labelled_batches(config, ranks), ranks, classwise=classwise)
            return readings_of(measures, with_losses=True), measures
        values = validate(model, config, text_batches(config, ranks), ranks)
        if self._unigram is not None:
            values["validation/unigram_perplexity"] = math.exp(self._unigram)
        if not config.eval.calibration_sequences:
            return values, None
        first = config.eval.model_copy(update={"sequences": config.eval.calibration_sequences})
        measures = gather_measures(voices, text_batches(config.model_copy(update={"eval": first}), ranks), ranks)
        return readings_of(measures, with_losses=False) | values, measures

    def _figures(self, measures: Measures) -> dict[str, Path]:
        """Drawn on rank 0 into the run directory, the newest only; TensorBoard keeps them all."""
        if self._ranks.rank or not self._config.eval.figures or not importlib.util.find_spec("matplotlib"):
            return {}
        try:
            return self._drawn(measures, self._rundir.path / "figures")
        except Exception as error:  # a full disk, a matplotlib that does not fit numpy: costs the figures, not the run
            self._warn(f"no figures of this validation: {type(error).__name__}: {error}")
            return {}

    def _drawn(self, measures: Measures, folder: Path) -> dict[str, Path]:
        from nt_pretrain.eval.figures import draw_pairs, draw_reliability, draw_risk_coverage

        folder.mkdir(exist_ok=True)
        drawn = {
            "reliability": draw_reliability(measures.classification, folder / "reliability.png"),
            "risk_coverage": draw_risk_coverage(measures.classification, folder / "risk_coverage.png"),
        }
        if measures.heads > 1:
            pairs = disagreement_matrix(measures.diversity)
            drawn["disagreement"] = draw_pairs(pairs, folder / "disagreement.png", title="disagreement of heads")
        return drawn


def text_batches(config: Config, ranks: Ranks) -> Iterator[Inputs]:
    """Validation sequences of this rank. Reading them is collective."""
    for tokens, documents in on_all(
        ranks, lambda: list(validation_batches(config, rank=ranks.data_rank, world=ranks.sizes.data))
    ):
        yield Inputs.of_text(tokens, documents)


def labelled_batches(config: Config, ranks: Ranks, change: Change | None = None) -> Iterator[Inputs]:
    """Validation pictures or rows of this rank, changed by ``change``, read as they are needed. Every batch is
    collective.
    """
    batches = iter(validation_samples(config, rank=ranks.data_rank, world=ranks.sizes.data, change=change))
    while (batch := on_all(ranks, lambda: next(batches, None))) is not None:
        yield Inputs.of_labelled(*batch)
