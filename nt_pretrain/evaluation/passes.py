"""MC dropout: several passes of each model with other units dropped, each a voice of its own.

After Gal and Ghahramani (ICML 2016, arXiv 1506.02142). The units of a pass are the same for all samples, so that a pass
is one network: a function of (seed, pass, layer), whatever the ranks and the batches.
"""

from __future__ import annotations

from functools import partial

from nt_pretrain.eval.voices import Part, Voices
from nt_pretrain.models.dropout import Drop, dropping

SEED = 0
"""Two evaluations drop the same units."""


def with_passes(voices: Voices, rate: float, passes: int) -> Voices:
    """Every part ``passes`` times: ``pass_0``, ``pass_1``, ... of a single head, else ``NAME.pass_0``, ..."""
    parts: list[Part] = []
    names: list[str] = []
    at = 0
    for number, part in enumerate(voices.parts):
        own = voices.names[at : at + len(part.heads)]
        at += len(own)
        for each in range(passes):
            drop = Drop(rate, (SEED, number, each))
            parts.append(Part(part.model, part.config, part.heads, partial(dropping, part.model, drop)))
            names += [f"pass_{each}" if voices.names == ("head_0",) else f"{name}.pass_{each}" for name in own]
    return Voices(tuple(parts), tuple(names))
