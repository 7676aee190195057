"""Where a run stands in its data: exact, and independent of the number of ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.text import Cursor


@dataclass(frozen=True)
class Plan:
    """What decides the order of a run; a position means something only under the same plan.

    ``fingerprints`` are those of the sources by name. Weights of a mixture are no part of it: every source keeps its
    own place, whatever share of the next batches it gets.
    """

    fingerprints: dict[str, str]
    tokenizer: str
    seed: int
    lanes: int
    window: int
    sequence_length: int
    packing: str
    global_batch: int


_KEYS = {
    "tokenizer": "data.tokenizer",
    "seed": "run.seed",
    "lanes": "data.lanes (or train.global_batch, from which it follows)",
    "window": "data.window",
    "sequence_length": "data.sequence_length",
    "packing": "data.packing",
}

Cursors = dict[str, dict[int, Cursor]]
"""Of each source by name: the cursor of every lane that is known."""


@dataclass(frozen=True)
class Position:
    """After ``batch`` global batches: where every source stands in every lane.

    A rank knows its own lanes, a checkpoint all of them.
    """

    plan: Plan
    batch: int
    cursors: Cursors

    def to_json(self) -> dict[str, Any]:
        cursors = {
            source: {str(lane): [c.epoch, c.document, c.offset, c.digest] for lane, c in sorted(lanes.items())}
            for source, lanes in self.cursors.items()
        }
        return {"plan": asdict(self.plan), "batch": self.batch, "cursors": cursors}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Position:
        """The position that :meth:`to_json` wrote.

        Raises:
            DataError: it is of another version.
        """
        try:
            cursors = {
                source: {int(lane): Cursor(*values) for lane, values in lanes.items()}
                for source, lanes in content["cursors"].items()
            }
            return Position(Plan(**content["plan"]), content["batch"], cursors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the checkpoint's place in the data cannot be read ({error!r}); another version of this program wrote "
                "it. Start a new run with another run.name."
            ) from None

    def differences(self, plan: Plan) -> list[str]:
        """Every option by which this position's plan differs from ``plan``, in words.

        A changed train.global_batch alone is no difference: lanes go on where they stand.
        """
        before, now = self.plan.fingerprints, plan.fingerprints
        found = []
        for name in [*now, *(name for name in before if name not in now)]:
            was, this = before.get(name, "not there"), now.get(name, "gone")
            if was != this:
                where = "the data in data.path" if len(before | now) == 1 else f"the data of data.sources.{name}"
                found.append(f"{where}: {was} -> {this}")
        old, new = asdict(self.plan), asdict(plan)
        return found + [f"{words}: {old[key]} -> {new[key]}" for key, words in _KEYS.items() if old[key] != new[key]]

    def is_reordered(self, plan: Plan, source: str) -> bool:
        """Whether a cursor of ``source`` means another document, or another token of it, under ``plan``."""
        before, now = self.plan, plan
        known = before.fingerprints.get(source)
        keys = ("tokenizer", "seed", "window", "packing")
        changed = any(getattr(before, key) != getattr(now, key) for key in keys)
        return known is not None and (changed or known != now.fingerprints[source])

    def check(self, plan: Plan, *, allow_change: bool = False) -> list[str]:
        """What of the plan has changed since, in words; empty as a rule.

        Raises:
            DataError: naming every option that differs, unless changes are allowed; or the number of lanes differs,
                whose places cannot be carried over.
        """
        different = self.differences(plan)
        lanes_differ = self.plan.lanes != plan.lanes
        if different and (lanes_differ or not allow_change):
            way_on = (
                "Set it back, or start a new run with another run.name."
                if lanes_differ
                else "Set it back, start a new run with another run.name, or go on all the same with "
                "data.allow_change=true: every lane then goes on from the same document number of its epoch, so some "
                "documents of this epoch come twice and others not at all."
            )
            raise DataError(
                "the checkpoint's place in the data means nothing any more, because this changed:\n  "
                + "\n  ".join(different)
                + f"\n{way_on}"
            )
        return different


def merge(positions: list[Position]) -> Position:
    """One position from those of all ranks.

    Raises:
        ValueError: they are not of the same batch and plan, or lanes are missing.
    """
    first = positions[0]
    if any((each.plan, each.batch) != (first.plan, first.batch) for each in positions):
        raise ValueError(f"positions of different batches: {sorted({each.batch for each in positions})}")
    cursors: Cursors = {}
    for source in first.plan.fingerprints:
        cursors[source] = {lane: cursor for each in positions for lane, cursor in each.cursors[source].items()}
        if len(cursors[source]) != first.plan.lanes:
            raise ValueError(f"cursors of {len(cursors[source])} lanes, but there are {first.plan.lanes}")
    return Position(first.plan, first.batch, cursors)
