"""Typing errors for text: swapped, dropped and inserted characters, after Belinkov and Bisk (ICLR 2018).

Every character is hit with the given chance, by a counter: the same text, seed and sample give the same errors
whoever makes them, and a higher rate keeps those of a lower one.
"""

from __future__ import annotations

import string

import torch

from nt_pretrain.counter_random import bits31, key_of, uniform

KINDS = ("swap", "drop", "insert")
RATES = (0.02, 0.05, 0.1, 0.15, 0.2)
"""Share of characters hit at severities 1 to 5."""


def with_typing_errors(text: str, kind: str, rate: float, *, seed: int, sample: int | str) -> str:
    """The text with errors of one kind.

    With u_i uniform in [0, 1), character i is hit where u_i < rate. ``swap``: it changes places with the next, which is
    then not hit itself; ``drop``: it is left out; ``insert``: a random lower-case letter is put before it.

    Raises:
        ValueError: no such kind, or a rate outside [0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"typing errors of kind {kind!r} are not known; choose one of {', '.join(KINDS)}")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate {rate} of typing errors is no share: it must lie between 0 and 1")
    index = torch.arange(len(text))
    hit = (uniform(key_of(seed, "typing errors", kind, sample), index) < rate).tolist()
    if kind == "drop":
        return "".join(character for character, gone in zip(text, hit, strict=True) if not gone)
    if kind == "insert":
        letters = (bits31(key_of(seed, "typing letters", sample), index) % len(string.ascii_lowercase)).tolist()
        return "".join(
            string.ascii_lowercase[letter] + character if new else character
            for character, new, letter in zip(text, hit, letters, strict=True)
        )
    characters, at = list(text), 0
    while at + 1 < len(characters):
        if hit[at]:
            characters[at], characters[at + 1] = characters[at + 1], characters[at]
            at += 1
        at += 1
    return "".join(characters)
