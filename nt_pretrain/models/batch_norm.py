"""Running statistics of batch norms, measured again.

A batch norm that trained keeps moving averages of what it saw; they lag behind the weights, and are wrong at once when
weights changed without training: a member whose topology was changed afterwards, an average of weights, a head that
was moved. Then they are measured over some batches with the weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nt_pretrain.models.loss import statistics_dtype


@dataclass
class Moments:
    """What was seen of each channel [C]: number of values, their mean, summed squared distance from it (fp64)."""

    count: int
    mean: Tensor
    squares: Tensor

    def merged(self, other: Moments) -> Moments:
        """Those of both together, whatever their sizes (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        away = other.mean - self.mean
        squares = self.squares + other.squares + away.square() * (self.count * other.count / count)
        return Moments(count, self.mean + away * (other.count / count), squares)


def measured_moments(
    modules: Iterable[nn.Module], forward: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> dict[nn.BatchNorm2d, Moments]:
    """Mean and spread of what each batch norm inside ``modules`` is given; nothing changes.

    While they are measured, these norms normalise with the batch at hand, as in training; every other module stays in
    the mode it is in. The moments are of all values of all batches together, not means over batches ("precise BN", Wu
    and Johnson 2021, arXiv 2105.07576).

    Args:
        modules: for example one head; its norms, however deep, are measured.
        forward: runs the network on a batch, through these modules, for example trunk and head. Without gradient.
        batches: pictures [B, 3, Y, X], on the network's device; as large as in training, since later norms see what
            earlier ones make of a batch. Augmented as in training.

    Raises:
        ValueError: no batch norm in ``modules``, or ``forward`` on ``batches`` did not run some of them.
    """
    norms = list(dict.fromkeys(norm for each in modules for norm in each.modules() if isinstance(norm, nn.BatchNorm2d)))
    if not norms:
        raise ValueError("statistics cannot be measured again: the modules given have no batch norm")
    moments: dict[nn.BatchNorm2d, Moments] = {}

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        seen = _moments(inputs[0])
        moments[norm] = moments[norm].merged(seen) if norm in moments else seen

    before = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        for norm in norms:
            # In training, but tracking nothing: the batch normalises, the running statistics stay.
            norm.training, norm.track_running_stats = True, False
        with torch.no_grad():
            for batch in batches:
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
        for norm, training, tracks in before:
            norm.training, norm.track_running_stats = training, tracks
    if idle := sum(norm not in moments for norm in norms):
        raise ValueError(
            f"statistics cannot be measured again: {idle} of {len(norms)} batch norms saw no batch; give at least one "
            "batch, and a forward that runs through all modules given"
        )
    return moments


def store_moments(moments: dict[nn.BatchNorm2d, Moments]) -> None:
    """Make ``moments`` the running statistics of their norms; the variance unbiased, as torch keeps it."""
    for norm, each in moments.items():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(each.mean)
        norm.running_var.copy_(each.squares / max(1, each.count - 1))


def _moments(x_BCYX: Tensor) -> Moments:
    count = x_BCYX.numel() // x_BCYX.shape[1]
    variance, mean = torch.var_mean(x_BCYX.to(statistics_dtype(x_BCYX)), dim=(0, 2, 3), correction=0)
    return Moments(count, mean.double(), variance.double() * count)
