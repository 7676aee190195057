"""Dropout of a training step (``model.dropout``): masks by step and sample, the same on every number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.models.dropout import Drop, dropping
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.exchange import gathered
from nt_pretrain.parallel.mesh import Ranks


@dataclass(frozen=True)
class StepDropout:
    """Of one step.

    Attributes:
        first: number in the global batch of this rank's first sample; ranks' batches laid end to end are that batch.
    """

    rate: float
    seed: int
    step: int
    first: int

    @contextmanager
    def of(self, model: MultiHead, first: int, size: int, ranks: Ranks) -> Iterator[None]:
        """Around forward and backward of the micro-batch of ``size`` samples from this rank's number ``first`` on.

        The trunk sees the samples of this rank, the heads those of all ranks of its head group. Collective with heads
        that are shared out.
        """
        own = torch.arange(self.first + first, self.first + first + size, device=ranks.device)
        key, cut = (self.seed, self.step), (ranks.place["tensor"], ranks.sizes.tensor)
        of_group = Drop(self.rate, key, gathered(own, 0, ranks.head_group), cut)
        if model.trunk is None:
            with dropping(model.heads, of_group, prefix="heads."):
                yield
            return
        with (
            dropping(model.trunk, Drop(self.rate, key, own, cut), prefix="trunk."),
            dropping(model.heads, of_group, prefix="heads."),
        ):
            yield


def step_dropout(config: Config, step: int, samples: int, ranks: Ranks) -> StepDropout | None:
    """Of ``step``, whose batch has ``samples`` samples on each rank; None without ``model.dropout``."""
    if not config.model.dropout:
        return None
    return StepDropout(config.model.dropout, config.run.seed, step, ranks.data_rank * samples)
