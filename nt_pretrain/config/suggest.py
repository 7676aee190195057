"""What a person probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to ``word``, or None where nothing is near.

    >>> closest("hiden", ["hidden", "heads", "layers"])
    'hidden'
    """
    words = list(known)
    lower = {each.lower().replace("-", "_"): each for each in words}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def closest_key(path: str, known: Iterable[str]) -> str | None:
    """The known ``section.key`` that ``path`` stands for: a typo, or the right key in a wrong section.

    >>> closest_key("train.lr", ["optim.lr", "optim.eps", "train.steps"])
    'optim.lr'
    """
    keys = list(known)
    section, _, key = path.rpartition(".")
    inside = {each.rpartition(".")[2]: each for each in keys if each.rpartition(".")[0] == section}
    if near := closest(key, inside):
        return inside[near]
    elsewhere = [each for each in keys if each.rpartition(".")[2] == key]
    if elsewhere:
        return closest(path, elsewhere) or elsewhere[0]
    # In a known section the section itself must not count as likeness; in an unknown one the section may be the typo.
    return None if inside else closest(path, keys)
