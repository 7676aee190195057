"""What went wrong while data was read, on its way from a reader process to the record of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

WHOLE_SHARD = -1


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong.

    Attributes:
        kind: what it is counted under.
        words: what happened, for people.
        masked: documents that were lost by it; 0 for what was mended, such as a read that was tried again.
        source, shard, document, epoch: where; ``document`` is WHOLE_SHARD where none of the shard can be read, and
            ``shard`` empty where the fault is of no shard.
    """

    kind: str
    words: str
    masked: int = 0
    source: str = ""
    shard: str = ""
    document: int = WHOLE_SHARD
    epoch: int = 0

    @property
    def place(self) -> tuple[str, str, str, int, int]:
        """Faults of one place are one fault."""
        return self.kind, self.source, self.shard, self.document, self.epoch


def merged(faults: Iterable[Fault]) -> list[Fault]:
    """Faults of one place as one, their masked documents added up; those that lost nothing as they are."""
    found: dict[tuple[str, str, str, int, int], Fault] = {}
    mended = []
    for fault in faults:
        if not fault.masked:
            mended.append(fault)
            continue
        known = found.get(fault.place)
        found[fault.place] = replace(known, masked=known.masked + fault.masked) if known else fault
    return mended + list(found.values())


def to_tensor(faults: list[Fault]) -> Tensor:
    """Faults as bytes (uint8), so that they travel from a reader process like everything else, in shared memory."""
    content = json.dumps([asdict(fault) for fault in faults]).encode() if faults else b""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def from_tensor(content: Tensor) -> list[Fault]:
    return [Fault(**each) for each in json.loads(content.numpy().tobytes())] if content.numel() else []
