"""What is done to inputs or weights to see how a model bears it: a list that follows from names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nt_pretrain.config.suggest import closest
from nt_pretrain.eval.corruptions import CORRUPTIONS
from nt_pretrain.eval.text_noise import KINDS, RATES
from nt_pretrain.eval.weight_dropout import SHARES

Kind = Literal["corruption", "typing", "weights"]
WEIGHT_DROPOUT = "weight_dropout"


@dataclass(frozen=True)
class Harm:
    """One harm at one of five severities.

    ``amount``: constants of a corruption, the share of characters hit, or the share of weights dropped.
    """

    kind: Kind
    name: str
    severity: int
    amount: tuple[float, ...]


def harms_of(names: Sequence[str] = (), *, pictures: bool) -> list[Harm]:
    """The harms of these names at severities 1 to 5, in a fixed order; without names all there are.

    Pictures have the corruptions of :data:`CORRUPTIONS`, text the typing errors of :data:`KINDS`, and both have
    ``weight_dropout``.

    Raises:
        ValueError: a name is not known, or is of the other kind of data.
    """
    inputs: dict[str, tuple[Kind, tuple[tuple[float, ...], ...]]] = {
        name: ("corruption", corruption.amounts) for name, corruption in CORRUPTIONS.items()
    }
    typing: dict[str, tuple[Kind, tuple[tuple[float, ...], ...]]] = {
        name: ("typing", tuple((rate,) for rate in RATES)) for name in KINDS
    }
    known = {**(inputs if pictures else typing), WEIGHT_DROPOUT: ("weights", tuple((share,) for share in SHARES))}
    for name in names:
        if name not in known:
            data = "pictures" if pictures else "text"
            near = closest(name, known)
            hint = f"did you mean {near}? " if near else ""
            other = f"it is for {'text' if pictures else 'pictures'}, and these data are {data}; "
            hint = other if name in inputs or name in typing else hint
            raise ValueError(f"robustness: {name!r} is not known; {hint}for {data} there are {', '.join(known)}")
    chosen = [name for name in known if name in names or not names]
    return [
        Harm(known[name][0], name, severity, amount)
        for name in chosen
        for severity, amount in enumerate(known[name][1], start=1)
    ]
