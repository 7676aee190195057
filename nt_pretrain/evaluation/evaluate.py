"""One checkpoint measured whole: raw, calibrated, its diversity, and against another distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.eval.confidence_histogram import BUCKETS
from nt_pretrain.eval.gather import gather_measures, said, summed_over_ranks
from nt_pretrain.eval.measure import Measures
from nt_pretrain.eval.members import CHUNK, pieces
from nt_pretrain.eval.ood import confidence_counts
from nt_pretrain.eval.robustness import Robustness
from nt_pretrain.eval.temperature import Temperatures
from nt_pretrain.evaluation.batches import ValidationSet
from nt_pretrain.evaluation.calibrate import Held, fit, held_out
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.overlap import topology_overlap
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.schedule import is_update_step

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it and of how much."""


@dataclass(frozen=True)
class Calibration:
    """Temperatures, and the members before and after them on samples that no temperature was fitted on.

    Attributes:
        raw: all measures of the samples that are reported.
        calibrated: of these only what concerns single members.
    """

    temperatures: Temperatures
    raw: Measures
    calibrated: Measures


@dataclass(frozen=True)
class Foreign:
    """Confidences of every member on samples of another distribution: int64 [M + 2, buckets]."""

    locations: list[str]
    confidences: Tensor
    broken: int


@dataclass(frozen=True)
class Evaluation:
    """All that was found, the same on every rank.

    Attributes:
        whole: raw measures of all samples.
        overlap: Jaccard index of the heads' topologies and its expectation for random ones; None where there is none.
        notes: what was left out, and why, as lines for people.
    """

    config: Config
    checkpoint: Loaded
    data: ValidationSet
    whole: Measures
    calibration: Calibration | None
    overlap: tuple[Tensor, Tensor] | None
    foreign: Foreign | None
    robustness: Robustness | None
    notes: list[str] = field(default_factory=list)


def evaluate(
    config: Config,
    loaded: Loaded,
    data: ValidationSet,
    ranks: Ranks,
    *,
    share: float,
    foreign: ValidationSet | None,
    progress: Progress,
) -> Evaluation:
    """Measure a loaded model on ``data``; all but its robustness. Collective.

    Args:
        share: of the samples that temperatures are fitted on and calibrated values are not reported for; 0: none.
        foreign: samples of another distribution.
    """
    heads, notes = config.model.heads, _notes(config, loaded)
    temperatures, held = None, None
    if share:
        held = _held(config, data, ranks, share)
        try:
            temperatures = fit(
                loaded.model, config, data.read(), held, ranks, lambda done: progress("fitting", done, data.rounds)
            )
        except ValueError as error:
            notes.append(str(error))
    if temperatures is None or held is None:
        whole, calibration = _measure(config, loaded, data, ranks, progress), None
    else:
        whole, calibration = _measure_both(config, loaded, data, ranks, held, temperatures, progress)
    return Evaluation(
        config=config,
        checkpoint=loaded,
        data=data,
        whole=whole,
        calibration=calibration,
        overlap=topology_overlap(loaded.layers, heads, ranks),
        foreign=None if foreign is None else _foreign(config, loaded, foreign, ranks, progress),
        robustness=None,
        notes=notes,
    )


def _notes(config: Config, loaded: Loaded) -> list[str]:
    """What should be known of the checkpoint."""
    notes = [f"checkpoint skipped: {each}" for each in loaded.skipped]
    if config.model.sees_pictures and not loaded.norms and is_update_step(config, loaded.step):
        notes.append(
            f"step {loaded.step:,} ended with a topology update, so the running statistics of batch norms are older "
            "than the topology; --norms 2048 measures them again"
        )
    return notes


def _held(config: Config, data: ValidationSet, ranks: Ranks, share: float) -> Held:
    total = data.rounds * ranks.sizes.data * config.eval.micro_batch
    return held_out(
        share, total, labels=data.labels_per_sample, heads=config.model.heads, classes=data.classes
    )  # fmt: skip


def _measure(config: Config, loaded: Loaded, data: ValidationSet, ranks: Ranks, progress: Progress) -> Measures:
    return gather_measures(
        loaded.model, config, data.read(), ranks, classwise=data.classwise,
        progress=lambda done: progress("measuring", done, data.rounds),
    )  # fmt: skip


def _measure_both(
    config: Config,
    loaded: Loaded,
    data: ValidationSet,
    ranks: Ranks,
    held: Held,
    temperatures: Temperatures,
    progress: Progress,
) -> tuple[Measures, Calibration]:
    """All samples raw, and those that are not held out raw and calibrated, in one pass."""
    heads, device = config.model.heads, ranks.device
    fitted, raw, calibrated = (Measures.zeros(heads, classwise=data.classwise, device=device) for _ in range(3))
    calibrated.temperatures = temperatures.values
    for done, words in enumerate(said(loaded.model, config, data.read(), ranks), start=1):
        away = held.of(words.samples)
        fitted.add(words.logits[:, away], words.labels[away])
        logits, labels = words.logits[:, ~away], words.labels[~away]
        raw.add(logits, labels)
        for piece in pieces(logits, labels, temperatures.values):
            calibrated.classification.add(piece)
        progress("measuring", done, data.rounds)
    for measures in (fitted, raw, calibrated):
        measures.take(summed_over_ranks(measures.table(), ranks))
    fitted.merge(raw)
    return fitted, Calibration(temperatures, raw, calibrated)


def _foreign(config: Config, loaded: Loaded, data: ValidationSet, ranks: Ranks, progress: Progress) -> Foreign:
    members = config.model.heads + 2
    confidences, broken = torch.zeros(members, BUCKETS, dtype=torch.int64, device=ranks.device), 0
    for done, words in enumerate(said(loaded.model, config, data.read(), ranks), start=1):
        rows = max(1, CHUNK // (words.logits.shape[0] * words.logits.shape[2]))
        for part in words.logits.split(rows, dim=1):
            if part.shape[1]:
                counts, lost = confidence_counts(part)
                confidences += counts
                broken += lost
        progress("foreign samples", done, data.rounds)
    table = torch.cat([confidences.flatten().cpu(), torch.tensor([broken])])
    total = summed_over_ranks(table, ranks)
    return Foreign(data.locations, total[:-1].view(members, BUCKETS), int(total[-1]))
