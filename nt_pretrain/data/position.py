"""Where a run stands in its data: exact, and independent of the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.text import Cursor


@dataclass(frozen=True)
class Plan:
    """What decides the order of a run; a position means something only under the same plan."""

    fingerprint: str
    tokenizer: str
    seed: int
    lanes: int
    window: int
    sequence_length: int
    packing: str
    global_batch: int


_KEYS = {
    "fingerprint": "the data in data.path",
    "tokenizer": "data.tokenizer",
    "seed": "run.seed",
    "lanes": "data.lanes (or train.global_batch, from which it follows)",
    "window": "data.window",
    "sequence_length": "data.sequence_length",
    "packing": "data.packing",
}


@dataclass(frozen=True)
class Position:
    """After ``batch`` global batches: the cursor of every lane that is known.

    A rank knows its own lanes, a checkpoint all of them.
    """

    plan: Plan
    batch: int
    cursors: dict[int, Cursor]

    def to_json(self) -> dict[str, Any]:
        cursors = {str(lane): [c.epoch, c.document, c.offset] for lane, c in sorted(self.cursors.items())}
        return {"plan": self.plan.__dict__, "batch": self.batch, "cursors": cursors}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Position:
        """The position that :meth:`to_json` wrote.

        Raises:
            DataError: it is of another version.
        """
        try:
            cursors = {int(lane): Cursor(*values) for lane, values in content["cursors"].items()}
            return Position(Plan(**content["plan"]), content["batch"], cursors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the checkpoint's place in the data cannot be read ({error!r}); another version of this program wrote "
                "it. Start a new run with another run.name."
            ) from None

    def check(self, plan: Plan) -> None:
        """Raise if this position was made under another plan.

        Raises:
            DataError: naming every option that differs. A changed train.global_batch alone is no difference: lanes go
                on where they stand.
        """
        before, now = self.plan.__dict__, plan.__dict__
        different = [f"{words}: {before[key]} -> {now[key]}" for key, words in _KEYS.items() if before[key] != now[key]]
        if different:
            raise DataError(
                "the checkpoint's place in the data means nothing any more, because this changed:\n  "
                + "\n  ".join(different)
                + "\nSet it back, or start a new run with another run.name."
            )


def merge(positions: list[Position]) -> Position:
    """One position from those of all ranks.

    Raises:
        ValueError: they are not of the same batch and plan, or lanes are missing.
    """
    first = positions[0]
    if any((each.plan, each.batch) != (first.plan, first.batch) for each in positions):
        raise ValueError(f"positions of different batches: {sorted({each.batch for each in positions})}")
    cursors = {lane: cursor for each in positions for lane, cursor in each.cursors.items()}
    if len(cursors) != first.plan.lanes:
        raise ValueError(f"cursors of {len(cursors)} lanes, but there are {first.plan.lanes}")
    return Position(first.plan, first.batch, cursors)
