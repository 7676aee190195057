"""The best of many members by a measure: each is measured alone, one after the other, so that memory holds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.gather import gather_measures
from nt_pretrain.eval.measure import values_of
from nt_pretrain.evaluation.batches import validation_set
from nt_pretrain.evaluation.chosen import Chosen
from nt_pretrain.evaluation.speakers import find_all, load_all, voices_of
from nt_pretrain.parallel.mesh import Ranks

Measure = Literal["nll", "accuracy"]


def best_of(
    chosen: Chosen, config: Config, top: int, by: Measure, ranks: Ranks, progress: Callable[[int, int], None]
) -> tuple[Chosen, dict[str, float], int]:
    """The ``top`` best members in their order, the value of every member, and the samples it is of. Collective.

    A member with several heads is measured by the mean of their probabilities.

    Args:
        config: of the data to measure on.

    Raises:
        CheckpointError, DataError: one cannot be read.
        ConfigErrors: outputs of one are no numbers.
    """
    data, samples, values = validation_set(config, ranks), 0, {}
    for done, each in enumerate(chosen.speakers):
        progress(done, len(chosen.speakers))
        alone = replace(chosen, speakers=[each])
        voices = voices_of(alone, load_all(find_all(alone, ranks), alone, ranks))
        found = values_of(gather_measures(voices, data.read(), ranks))
        if found["set"]["broken"]:
            raise ConfigErrors([f"{each.name}: its outputs are no numbers for {found['set']['broken']:.0f} samples"])
        samples, values[each.name] = int(found["set"]["samples"]), found["ensemble"][by]
    progress(len(chosen.speakers), len(chosen.speakers))
    order = sorted(values, key=lambda name: values[name] if by == "nll" else -values[name])[:top]
    return replace(chosen, speakers=[each for each in chosen.speakers if each.name in order]), values, samples
