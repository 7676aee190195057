"""A checkpoint, or an ensemble of several, measured whole: raw, calibrated, diversity, and against foreign samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from nt_pretrain.eval.voices import Voices
from nt_pretrain.evaluation.batches import ValidationSet
from nt_pretrain.evaluation.calibrate import Held, fit, held_out
from nt_pretrain.evaluation.chosen import Chosen
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
        checkpoints: of all that speak, in the order of ``chosen``.
        overlap: Jaccard index of the heads' topologies and its expectation for random ones; None where there is none.
        notes: what was left out, and why, as lines for people.
        costs: of :func:`nt_pretrain.evaluation.costs.costs_of_chosen`; None: nobody counted them.
    """

    chosen: Chosen
    checkpoints: list[Loaded]
    data: ValidationSet
    whole: Measures
    calibration: Calibration | None
    overlap: tuple[Tensor, Tensor] | None
    foreign: Foreign | None
    robustness: Robustness | None
    notes: list[str] = field(default_factory=list)
    costs: dict[str, Any] | None = None


def evaluate(
    chosen: Chosen,
    loaded: Sequence[Loaded],
    voices: Voices,
    data: ValidationSet,
    ranks: Ranks,
    *,
    share: float,
    foreign: ValidationSet | None,
    progress: Progress,
) -> Evaluation:
    """Measure loaded models on ``data``; all but their robustness. Collective.

    Args:
        voices: of ``loaded``, the checkpoints of ``chosen``.
        share: of the samples that temperatures are fitted on and calibrated values are not reported for; 0: none.
        foreign: samples of another distribution.
    """
    notes = _notes(chosen, loaded)
    temperatures, held = None, None
    if share:
        held = _held(chosen.config, voices, data, ranks, share)
        try:
            temperatures = fit(voices, data.read(), held, ranks, lambda done: progress("fitting", done, data.rounds))
        except ValueError as error:
            notes.append(str(error))
    if temperatures is None or held is None:
        whole, calibration = _measure(voices, data, ranks, progress), None
    else:
        whole, calibration = _measure_both(voices, data, ranks, held, temperatures, progress)
    # Passes of MC dropout have the topology of their network.
    is_plain = voices.count == len(chosen.voices)
    overlap, left_out = topology_overlap(chosen.speakers, loaded, ranks) if is_plain else (None, "")
    notes += [left_out] if left_out else []
    return Evaluation(
        chosen=chosen,
        checkpoints=list(loaded),
        data=data,
        whole=whole,
        calibration=calibration,
        overlap=overlap,
        foreign=None if foreign is None else _foreign(voices, foreign, ranks, progress),
        robustness=None,
        notes=notes,
    )


def _notes(chosen: Chosen, loaded: Sequence[Loaded]) -> list[str]:
    """What should be known of the checkpoints."""
    notes = []
    for each, one in zip(chosen.speakers, loaded, strict=True):
        whose = f"{each.name}, " if each.name else ""
        notes += [f"{whose}checkpoint skipped: {why}" for why in one.skipped]
        if each.config.model.sees_pictures and not one.norms and is_update_step(each.config, one.step):
            notes.append(
                f"{whose}step {one.step:,} ended with a topology update, so the running statistics of batch norms are "
                "older than the topology; --norms 2048 measures them again"
            )
    return notes


def _held(config: Config, voices: Voices, data: ValidationSet, ranks: Ranks, share: float) -> Held:
    total = data.rounds * ranks.sizes.data * config.eval.micro_batch
    return held_out(share, total, labels=data.labels_per_sample, heads=voices.count, classes=data.classes)


def _measure(voices: Voices, data: ValidationSet, ranks: Ranks, progress: Progress) -> Measures:
    return gather_measures(
        voices, data.read(), ranks, classwise=data.classwise,
        progress=lambda done: progress("measuring", done, data.rounds),
    )  # fmt: skip


def _measure_both(
    voices: Voices,
    data: ValidationSet,
    ranks: Ranks,
    held: Held,
    temperatures: Temperatures,
    progress: Progress,
) -> tuple[Measures, Calibration]:
    """All samples raw, and those that are not held out raw and calibrated, in one pass."""
    fitted, raw, calibrated = (
        Measures.zeros(voices.names, classwise=data.classwise, device=ranks.device) for _ in range(3)
    )
    calibrated.temperatures = temperatures.values
    for done, words in enumerate(said(voices, data.read(), ranks), start=1):
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


def _foreign(voices: Voices, data: ValidationSet, ranks: Ranks, progress: Progress) -> Foreign:
    members = voices.count + 2
    confidences, broken = torch.zeros(members, BUCKETS, dtype=torch.int64, device=ranks.device), 0
    for done, words in enumerate(said(voices, data.read(), ranks), start=1):
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
