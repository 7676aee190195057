"""Temperatures fitted on a part of the samples that nothing else is then reported for.

Which samples fit is a function of their number in the set alone, so that no number of ranks and no batch size changes
it. A scalar for each member needs few samples and their logits are kept for Newton's passes, so both are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.counter_random import bits31, key_of
from nt_pretrain.eval.gather import said, summed_over_ranks
from nt_pretrain.eval.temperature import Temperatures, fit_temperatures
from nt_pretrain.eval.voices import Voices
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks

MOST = 10_000
"""Labels that temperatures are fitted on at most."""
MOST_BYTES = 1 << 30
"""Logits that are kept for the fit at most, of all heads and ranks, in bytes of fp32."""


@dataclass(frozen=True)
class Held:
    """The samples that fit temperatures: bool by number, of all samples and what fills the last batches up."""

    chosen: Tensor

    def of(self, samples: Tensor) -> Tensor:
        """Whether each of the numbers ``samples`` is one of them."""
        return self.chosen.to(samples.device)[samples]


def held_out(share: float, total: int, *, labels: int, heads: int, classes: int) -> Held:
    """A share of the samples, by a hash of their number; the first of these where they are too many.

    Args:
        share: 0 to 1.
        total: numbers there are, those included that only fill up batches.
        labels: that a sample has at most.
    """
    numbers = torch.arange(total)
    chosen = bits31(key_of("held out for temperatures"), numbers) < share * (1 << 31)
    most = min(MOST, MOST_BYTES // (4 * heads * classes)) // labels
    return Held(chosen & (chosen.cumsum(0) <= max(1, most)))


def fit(
    voices: Voices,
    batches: Iterable[Inputs],
    held: Held,
    ranks: Ranks,
    progress: Callable[[int], None],
) -> Temperatures:
    """Temperatures of the members from the samples ``held``. Collective.

    Args:
        batches: all of this rank's; those of a round without a sample of ``held`` on any rank are not run.
        progress: told the samples' batches that are read.

    Raises:
        ValueError: on all ranks; no sample of them has a label, or a logit is not finite.
    """
    kept = [(each.logits, each.labels) for each in said(voices, _only(batches, held, ranks, progress), ranks)]
    return fit_temperatures(lambda: kept, voices.count, lambda table: summed_over_ranks(table, ranks))


def _only(batches: Iterable[Inputs], held: Held, ranks: Ranks, progress: Callable[[int], None]) -> Iterator[Inputs]:
    """The batches with no labels but those of samples ``held``."""
    for number, (inputs, targets, documents) in enumerate(batches):
        size = len(targets)
        first = number * ranks.sizes.data * size
        if held.chosen[first : first + ranks.sizes.data * size].any():
            first += ranks.data_rank * size
            mine = held.chosen[first : first + size].view(-1, *[1] * (targets.ndim - 1))
            yield Inputs(inputs, targets.masked_fill(~mine, IGNORED), documents)
        progress(number + 1)
