"""Training the control point of a curve: a step computes with a point on it, and only the control point moves.

The ends lie beside the state as frozen shards. Weights of the point are put into the state's shards before the forward
pass; afterwards the control point is put back, and the gradient becomes its own by the chain rule: every weight of the
point at r is 2 r (1 - r) times that of the control point, plus what does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.curve import Curve, shares_at
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import local, reshard
from nt_pretrain.train.blend import Shards, summed
from nt_pretrain.train.norms import measure_norms_again
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.validation import Validation

MIDDLE = 0.5
PICTURES = 2048
"""On which running statistics of a point are measured, or all there are."""
Shares = tuple[float, float, float]
"""Of the first end, the control point and the last end."""
POINTS: dict[str, Shares] = {
    "loss_first": shares_at(0.0),
    "loss_middle": shares_at(MIDDLE),
    "loss_last": shares_at(1.0),
    "loss_line": (0.5, 0.0, 0.5),
}


@dataclass(frozen=True)
class OnCurve:
    """A curve whose control point is ``state``."""

    curve: Curve
    state: TrainState
    ends: tuple[Shards, Shards]
    config: Config
    ranks: Ranks

    @contextmanager
    def for_step(self, step: int) -> Iterator[None]:
        """Inside, the network is the point that ``step`` of the phase draws; outside again the control point, with its
        own gradient.
        """
        shares = shares_at(self.curve.position(step))
        with self._at(shares):
            yield
        with torch.no_grad():
            for parameter in self.state.optimizer.parameters.values():
                assert parameter.grad is not None
                local(parameter.grad).mul_(shares[1])

    @contextmanager
    def point(self, shares: Shares) -> Iterator[None]:
        """Inside, the network is a point to be measured; running statistics of its norms are measured for it.

        Raises:
            DataError: on all ranks, if a training picture cannot be read.
        """
        model = self.state.model
        before = {name: buffer.clone() for name, buffer in statistics_of(model).items()}
        reshard(model)
        with self._at(shares):
            if before:
                measure_norms_again(model, self.config, self.ranks, PICTURES, lambda done, of: None)
            yield
            reshard(model)
        for name, buffer in statistics_of(model).items():
            buffer.copy_(before[name])

    @contextmanager
    def _at(self, shares: Shares) -> Iterator[None]:
        shards = self.state.optimizer.shards
        with torch.no_grad():
            before = {name: shard.clone() for name, shard in shards.items()}
            for name, shard in shards.items():
                values = (self.ends[0][name], before[name], self.ends[1][name])
                shard.copy_(summed(list(zip(values, shares, strict=True))))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, shard in shards.items():
                    shard.copy_(before[name])


def losses_on(curve: OnCurve, validation: Validation, begins: Callable[[str], None]) -> dict[str, float]:
    """Validation losses at both ends and in the middle of a curve, and of the straight line: where the latter is far
    higher, a barrier lies between the ends that the curve leads around. Collective.

    Args:
        begins: told what is measured next, in words.

    Raises:
        DataError: on all ranks, if validation or training data cannot be read.
    """
    found = {}
    for number, (name, shares) in enumerate(POINTS.items(), start=1):
        begins(f"measuring the curve, point {number} of {len(POINTS)}")
        with curve.point(shares):
            found[f"curve/{name}"] = validation.measure().values["validation/loss_ensemble"]
    return found
