"""All measures of one set of samples at once: sums to add to, to add over ranks, and the values they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nt_pretrain.eval.calibration import classwise_error, equal_mass_error, equal_width_error
from nt_pretrain.eval.classification import ClassificationSums, classification_values, perplexity
from nt_pretrain.eval.diversity import DiversitySums, diversity_values
from nt_pretrain.eval.exact import carried
from nt_pretrain.eval.heads_used import HeadsUsedSums, heads_used_values
from nt_pretrain.eval.members import head_names, member_names, pieces
from nt_pretrain.eval.selective import area_under_risk_coverage

FIXED_POINT = {"nll", "brier", "kl", "jensen_shannon", "cosine", "centred_cosine", "mutual_information"}
"""Fields that hold fixed-point sums, whose fractions carry over when they are added."""


@dataclass
class Measures:
    """Sums of a set of samples for the M heads ``names``; ``temperatures`` [M + 2] where the members are calibrated.

    The size does not depend on the number of samples: about 1 MB for each member, and 360 bytes more for each class
    where classwise calibration is wanted.
    """

    names: tuple[str, ...]
    classification: ClassificationSums
    diversity: DiversitySums
    heads_used: HeadsUsedSums
    temperatures: Tensor | None = None

    @staticmethod
    def zeros(
        heads: int | Sequence[str],
        *,
        classwise: int = 0,
        temperatures: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Measures:
        """Empty sums of heads by their names, or of so many heads of one model.

        Args:
            classwise: the number of classes where classwise calibration is wanted, else 0.
        """
        names = head_names(heads) if isinstance(heads, int) else tuple(heads)
        return Measures(
            names=names,
            classification=ClassificationSums.zeros(len(names) + 2, classwise=classwise, device=device),
            diversity=DiversitySums.zeros(len(names), device=device),
            heads_used=HeadsUsedSums.zeros(len(names), device=device),
            temperatures=temperatures,
        )

    @property
    def heads(self) -> int:
        return len(self.names)

    @property
    def members(self) -> list[str]:
        """Names of heads and ensembles, in the order of all sums."""
        return member_names(self.names)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add samples or tokens: logits [M, ..., C] of all heads, labels [...] with IGNORED where none is.

        Nothing of them is kept. A language model's tokens may come in pieces of any size.

        Raises:
            ValueError: shapes do not fit, or a label is no class.
        """
        if len(logits) != self.heads:
            raise ValueError(f"logits of {len(logits)} heads (shape {list(logits.shape)}) for sums of {self.heads}")
        for piece in pieces(logits, labels, self.temperatures):
            for sums in self._parts():
                sums.add(piece)

    def table(self) -> Tensor:
        """All sums as one int64 vector; tables of ranks are added element by element."""
        return torch.cat([getattr(sums, field.name).flatten() for sums in self._parts() for field in fields(sums)])

    def take(self, table: Tensor) -> None:
        """Replace the sums by those of a :meth:`table`, e.g. one that was added up over ranks."""
        at = 0
        for sums in self._parts():
            for field in fields(sums):
                old = getattr(sums, field.name)
                new = table[at : at + old.numel()].view(old.shape).to(old.device)
                setattr(sums, field.name, carried(new) if field.name in FIXED_POINT else new)
                at += old.numel()
        if at != table.numel():
            raise ValueError(f"a table of {table.numel()} sums does not fit {at}: another number of heads or classes")

    def merge(self, other: Measures) -> None:
        """Add another's sums."""
        self.take(self.table() + other.table().to(self.classification.counts.device))

    def _parts(self) -> tuple[ClassificationSums, DiversitySums, HeadsUsedSums]:
        return self.classification, self.diversity, self.heads_used


def member_values(sums: ClassificationSums, member: int) -> dict[str, float]:
    """All values of one member: those of :func:`classification_values`, ``ece``, ``ece_equal_mass``, ``aurc`` and,
    where it was asked for, ``ece_classwise``.
    """
    values = classification_values(sums, member)
    calibration = {
        "ece": equal_width_error(sums.bins[member]),
        "ece_equal_mass": equal_mass_error(sums.confidences[member]),
        "aurc": area_under_risk_coverage(sums.confidences[member]),
    }
    if sums.classwise.shape[1]:
        calibration["ece_classwise"] = classwise_error(sums.classwise[member])
    broken = int(sums.counts[1])
    return values | {name: math.nan if broken else value for name, value in calibration.items()}


def values_of(measures: Measures) -> dict[str, dict[str, float]]:
    """Values by member (``head_0`` ..., ``mean_head``, ``ensemble``, ``ensemble_logit``) and of the whole set.

    ``mean_head`` is the mean over heads of every value, of the perplexity the exponential of the mean loss.
    ``set`` has ``samples``, ``broken``, the values of :func:`diversity_values`, and ``ensemble_gain``,
    ``ensemble_gain_logit`` (mean head's NLL less the ensemble's, in nats) and ``ensemble_gain_accuracy``.
    """
    sums = measures.classification
    names = measures.members
    table = {name: member_values(sums, index) for index, name in enumerate(names)}
    heads = [table[name] for name in names[: measures.heads]]
    mean = {name: _mean([head[name] for head in heads]) for name in heads[0]}
    mean["perplexity"] = perplexity(mean["nll"])
    table["mean_head"] = mean
    table["set"] = {
        "samples": int(sums.counts[0]),
        "broken": int(sums.counts[1]),
        "ensemble_gain": mean["nll"] - table["ensemble"]["nll"],
        "ensemble_gain_logit": mean["nll"] - table["ensemble_logit"]["nll"],
        "ensemble_gain_accuracy": table["ensemble"]["accuracy"] - mean["accuracy"],
        **diversity_values(measures.diversity),
    }
    return table


def quality_by_heads(measures: Measures) -> list[dict[str, float]]:
    """Rows of :func:`nt_pretrain.eval.heads_used.heads_used_values`."""
    return heads_used_values(measures.heads_used, measures.heads)


def _mean(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else sum(values) / len(values)
