"""Names of harms to what is measured."""

import pytest

from nt_pretrain.eval.corruptions import CORRUPTIONS
from nt_pretrain.eval.harms import Harm, harms_of
from nt_pretrain.eval.text_noise import KINDS, RATES


def test_all_and_some() -> None:
    every = harms_of(data="pictures")
    assert len(every) == (len(CORRUPTIONS) + 1) * 5
    assert list(dict.fromkeys(harm.name for harm in every)) == [*CORRUPTIONS, "weight_dropout"]
    assert every[1] == Harm("corruption", "gaussian_noise", 2, (0.12,))
    assert every[-1] == Harm("weights", "weight_dropout", 5, (0.3,))
    text = harms_of(data="text")
    assert [harm.name for harm in text[::5]] == [*KINDS, "weight_dropout"]
    assert [harm.amount for harm in text[:5]] == [(rate,) for rate in RATES] and text[0].kind == "typing"
    some = harms_of(["jpeg", "fog"], data="pictures")
    assert [(harm.name, harm.severity) for harm in some] == [(n, s) for n in ("fog", "jpeg") for s in range(1, 6)]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"'fogg' is not known; did you mean fog\? for pictures there are gaussian_no"):
        harms_of(["jpeg", "fogg"], data="pictures")
    with pytest.raises(ValueError, match="'swap' is not known; it is for text, and these data are pictures"):
        harms_of(["swap"], data="pictures")
    with pytest.raises(ValueError, match="'jpeg' is not known; it is for pictures, and these data are text"):
        harms_of(["jpeg"], data="text")
