"""What became of the claims: differences over seeds against their standard error."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from nt_pretrain.comparison.results import Result, Value
from nt_pretrain.config.compare_section import Claim, CompareSection

SURE = 2.0
"""Standard errors that a difference must exceed to count."""


@dataclass(frozen=True)
class Verdict:
    """Of one claim: ``held``, ``not held`` (the difference goes the other way) or ``undecided``; and the difference."""

    says: str
    claim: Claim
    word: str
    difference: Value


def judge(says: str, claim: Claim, results: dict[str, Result]) -> Verdict:
    """The difference of two rows, seed by seed, as both had the same data and the same seeds."""
    row, measure, compared, than = claim
    one, other = (results[name].ensemble[measure] for name in (row, than))
    difference = Value(tuple(a - b for a, b in zip(one.each, other.each, strict=True)))
    toward = -difference.mean if compared == "lower" else difference.mean
    if math.isnan(difference.error) or abs(toward) <= SURE * difference.error:
        word = "undecided"
    else:
        word = "held" if toward > 0 else "not held"
    return Verdict(says, claim, word, difference)


def claim_problems(compare: CompareSection) -> list[str]:
    """Claims that no result could decide, before anything is run."""
    found = [
        f"compare.claims: {says}: there is no row {', '.join(unknown)}; rows are {', '.join(compare.rows)}"
        for says, claim in compare.claims.items()
        if (unknown := unknown_rows(claim, compare.rows))
    ]
    return found + [
        f"compare.claims: {says}: corrupted_nll is measured only with compare.harms; name some, e.g. gaussian_noise"
        for says, claim in compare.claims.items()
        if claim[1] == "corrupted_nll" and not compare.harms
    ]


def unknown_rows(claim: Claim, names: Collection[str]) -> list[str]:
    """Rows that a claim speaks of and that are not there."""
    return [name for name in (claim[0], claim[3]) if name not in names]
