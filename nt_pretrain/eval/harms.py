"""What is done to inputs or weights to see how a model bears it: a list that follows from names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nt_pretrain.config import model_section
from nt_pretrain.config.suggest import closest
from nt_pretrain.eval.corruptions import CORRUPTIONS
from nt_pretrain.eval.row_noise import DEVIATIONS, GAUSSIAN_NOISE
from nt_pretrain.eval.text_noise import KINDS, RATES
from nt_pretrain.eval.weight_dropout import SHARES

Kind = Literal["corruption", "typing", "weights"]
Amounts = dict[str, tuple[Kind, tuple[tuple[float, ...], ...]]]
WEIGHT_DROPOUT = "weight_dropout"


@dataclass(frozen=True)
class Harm:
    """One harm at one of five severities.

    ``amount``: constants of a corruption, the standard deviation of noise on rows, the share of characters hit, or the
    share of weights dropped.
    """

    kind: Kind
    name: str
    severity: int
    amount: tuple[float, ...]


def harms_of(names: Sequence[str] = (), *, data: model_section.Kind) -> list[Harm]:
    """The harms of these names at severities 1 to 5, in a fixed order; without names all there are.

    Pictures have the corruptions of :data:`CORRUPTIONS`, rows ``gaussian_noise``, text the typing errors of
    :data:`KINDS`, and all have ``weight_dropout``.

    Raises:
        ValueError: a name is not known, or is of the other kind of data.
    """
    inputs: Amounts = {name: ("corruption", corruption.amounts) for name, corruption in CORRUPTIONS.items()}
    typing: Amounts = {name: ("typing", tuple((rate,) for rate in RATES)) for name in KINDS}
    noise: Amounts = {GAUSSIAN_NOISE: ("corruption", tuple((deviation,) for deviation in DEVIATIONS))}
    by_data: dict[model_section.Kind, Amounts] = {"text": typing, "pictures": inputs, "rows": noise}
    known: Amounts = {**by_data[data], WEIGHT_DROPOUT: ("weights", tuple((share,) for share in SHARES))}
    for name in names:
        if name not in known:
            near = closest(name, known)
            hint = f"did you mean {near}? " if near else ""
            others = [kind for kind, harms in by_data.items() if name in harms]
            hint = f"it is for {others[0]}, and these data are {data}; " if others else hint
            raise ValueError(f"robustness: {name!r} is not known; {hint}for {data} there are {', '.join(known)}")
    chosen = [name for name in known if name in names or not names]
    return [
        Harm(known[name][0], name, severity, amount)
        for name in chosen
        for severity, amount in enumerate(known[name][1], start=1)
    ]
