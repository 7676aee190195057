"""How much of a model's quality is left when inputs or weights are harmed, and means over all harms.

After Ovadia et al. (NeurIPS 2019), accuracy and calibration under corruptions of rising severity, and Hendrycks and
Dietterich (ICLR 2019), means over corruptions and severities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import nn

from nt_pretrain.eval.harms import Harm, Kind
from nt_pretrain.eval.lost_head import lost_head_values
from nt_pretrain.eval.measure import Measures, values_of
from nt_pretrain.eval.weight_dropout import weight_dropout

Values = dict[str, dict[str, float]]
"""Of :func:`nt_pretrain.eval.measure.values_of`."""
MEANS = {"cA": "accuracy", "cNLL": "nll", "cECE": "ece", "cBPC": "bits_per_character"}
"""Means over harms by the value they are means of."""


@dataclass(frozen=True)
class Samples:
    """A validation set of this rank: batches as ``measure`` takes them, and, of text, the characters that
    the targets of all ranks spell; 0: not known.
    """

    batches: Iterable[Any]
    characters: int = 0


@dataclass(frozen=True)
class Robustness:
    """Values of every member without harm, under every harm, without each head, and on other corpora."""

    clean: Values
    harmed: list[tuple[Harm, Values]] = field(default_factory=list)
    lost_heads: list[dict[str, float]] = field(default_factory=list)
    domains: dict[str, Values] = field(default_factory=dict)

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of harms that were measured, in their order."""
        return list(dict.fromkeys(harm.kind for harm, _ in self.harmed))

    @property
    def members(self) -> list[str]:
        return [name for name in self.clean if name != "set"]

    def of(self, kind: Kind) -> dict[str, list[tuple[Harm, Values]]]:
        """Harms of a kind by name, by rising severity."""
        found: dict[str, list[tuple[Harm, Values]]] = {}
        for harm, values in sorted(self.harmed, key=lambda each: each[0].severity):
            if harm.kind == kind:
                found.setdefault(harm.name, []).append((harm, values))
        return {name: found[name] for name in dict.fromkeys(harm.name for harm, _ in self.harmed) if name in found}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dicts and lists; means by kind of harm."""
        return {
            "clean": self.clean,
            "harms": [{**asdict(harm), "amount": list(harm.amount), "values": values} for harm, values in self.harmed],
            "means": {
                kind: {
                    member: {
                        **means(self, kind, member),
                        "by_name": {name: means(self, kind, member, name=name) for name in self.of(kind)},
                        "by_severity": {
                            str(severity): means(self, kind, member, severity=severity)
                            for severity in severities(self, kind)
                        },
                    }
                    for member in self.members
                }
                for kind in self.kinds
            },
            "lost_heads": self.lost_heads,
            "domains": self.domains,
        }


def measure_all(
    measure: Callable[[Iterable[Any]], Measures],
    samples: Callable[[Harm | None], Samples],
    harms: Sequence[Harm],
    *,
    models: Sequence[nn.Module],
    seed: int,
    domains: Mapping[str, Callable[[], Samples]] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Robustness:
    """Measure what speaks as it is, under each harm and on each other corpus. Collective where ``measure`` is.

    Args:
        measure: the sums of a set over all ranks.
        samples: the set under a harm of its inputs; as it is for None.
        harms: of :func:`nt_pretrain.eval.harms.harms_of`.
        models: whose weights are dropped; those of the same name in different ones by chances of their own.
        seed: of dropped weights; ``samples`` has that of inputs.
        domains: other corpora by name.
        progress: called before each set with sets done, sets in all, what comes; and at the end.
    """
    others = domains or {}
    total, done = 1 + len(harms) + len(others), 0

    def measured(what: str, made: Callable[[], Samples]) -> tuple[Measures, Values]:
        nonlocal done
        progress(done, total, what)
        taken = made()
        sums = measure(taken.batches)
        done += 1
        return sums, with_characters(values_of(sums), taken.characters)

    sums, clean = measured("as it is", partial(samples, None))
    harmed: list[tuple[Harm, Values]] = []
    for harm in harms:
        inputs = None if harm.kind == "weights" else harm
        with ExitStack() as stack:
            for number, model in enumerate(models if inputs is None else ()):
                stack.enter_context(weight_dropout(model, harm.amount[0], seed + number))
            harmed.append((harm, measured(f"{harm.name} {harm.severity}", partial(samples, inputs))[1]))
    found = {name: measured(name, made)[1] for name, made in others.items()}
    progress(done, total, "")
    return Robustness(clean, harmed, lost_head_values(sums.heads_used, sums.heads), found)


def with_characters(values: Values, characters: int) -> Values:
    """The values with ``bits_per_character`` of each member where characters are known: the loss of all targets in
    bits (ends of documents too, which spell nothing) over the characters that they spell.
    """
    if not characters:
        return values
    factor = values["set"]["samples"] / (characters * math.log(2.0))
    return {
        name: member if name == "set" else {**member, "bits_per_character": member["nll"] * factor}
        for name, member in values.items()
    }


def severities(robustness: Robustness, kind: Kind) -> list[int]:
    """Severities measured, rising."""
    return sorted({harm.severity for harm, _ in robustness.harmed if harm.kind == kind})


def means(
    robustness: Robustness, kind: Kind, member: str, *, name: str | None = None, severity: int | None = None
) -> dict[str, float]:
    """Unweighted means of a member over all harms of a kind, or those of one name or one severity: ``cA``, ``cNLL``,
    ``cECE``, of text ``cBPC``; each with ``..._change`` against the unharmed value, and ``cA_kept`` = cA / accuracy.

    Nothing is divided by the errors of another network, as mCE is by AlexNet's.
    """
    rows = [
        values[member]
        for harm, values in robustness.harmed
        if harm.kind == kind and name in (None, harm.name) and severity in (None, harm.severity)
    ]
    clean = robustness.clean[member]
    found: dict[str, float] = {}
    for label, value in MEANS.items():
        if value in clean and rows:
            mean = _mean([row[value] for row in rows])
            found |= {label: mean, f"{label}_change": mean - clean[value]}
    if "cA" in found:
        found["cA_kept"] = found["cA"] / clean["accuracy"] if clean["accuracy"] else math.nan
    return found


def _mean(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else math.fsum(values) / len(values)
