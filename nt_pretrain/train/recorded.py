"""What a run has written down before it was killed, so that it is not measured and written twice."""

from __future__ import annotations

import torch
import torch.distributed as dist

from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.mesh import Ranks


def is_recorded(rundir: RunDir, key: str, step: int, ranks: Ranks) -> bool:
    """Whether metrics.jsonl has ``key`` of ``step``: what follows a checkpoint may be there or not. Collective."""
    found = torch.zeros((), dtype=torch.int64)
    if ranks.rank == 0:
        found += any(key in line for line in read_lines(rundir.metrics) if line["step"] == step)
    dist.broadcast(found, src=0, group=ranks.control)
    return bool(found)
