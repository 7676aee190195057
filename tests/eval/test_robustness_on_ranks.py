"""Robustness of sharded models, whose inputs are harmed and whose weights are dropped, on one rank and on two."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.validation import validation_samples, validation_text
from nt_pretrain.eval.corrupted_set import Corruptor
from nt_pretrain.eval.gather import gather_measures
from nt_pretrain.eval.harms import Harm, harms_of
from nt_pretrain.eval.measure import Measures
from nt_pretrain.eval.robustness import Samples, measure_all
from nt_pretrain.eval.text_noise import with_typing_errors
from nt_pretrain.eval.voices import Voices
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from tests.data.conftest import Gallery, Sea, gallery, sea  # noqa: F401  (two are fixtures)
from tests.gloo import run_ranks
from tests.train.worlds import tiny


def disturb(text: str, name: str, harm: Harm) -> str:
    return with_typing_errors(text, harm.name, harm.amount[0], seed=4, sample=name)


def _measured(rank: int, world: int, config: Config) -> str:
    ranks = connect(config)
    model = fresh_state(config, ranks).model
    before = [p.full_tensor().clone() for p in model.parameters()]  # type: ignore[attr-defined]
    pictures = config.model.sees_pictures
    inputs = Inputs.of_labelled if pictures else Inputs.of_text
    place = {"rank": ranks.data_rank, "world": ranks.sizes.data}

    def measure(batches: Iterable[tuple[Tensor, Tensor]]) -> Measures:
        return gather_measures(Voices.of(model, config), (inputs(*batch) for batch in batches), ranks)

    def samples(harm: Harm | None) -> Samples:
        if pictures:
            change = None if harm is None else Corruptor(harm.name, harm.severity, seed=4)
            return Samples(validation_samples(config, **place, change=change))
        text = validation_text(config, disturb=None if harm is None else partial(disturb, harm=harm))
        return Samples(text.batches(config, **place), text.characters)

    names = ["impulse_noise" if pictures else "swap", "weight_dropout"]
    harms = [harm for harm in harms_of(names, data=config.model.data) if harm.severity in (1, 5)]
    found = measure_all(measure, samples, harms, models=[model], seed=4, domains={"own again": partial(samples, None)})
    after = [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))
    assert found.domains["own again"] == found.clean, "the weights are back, and so are the answers"
    return json.dumps(found.to_json())


def on_one_and_two(config: Config) -> dict[str, Any]:
    """What one rank found and two found alike; every harm has shown."""
    (one,) = run_ranks(_measured, 1, config, timeout=110)
    assert run_ranks(_measured, 2, config, timeout=110) == [one, one]
    found: dict[str, Any] = json.loads(one)
    losses = {each["values"]["ensemble"]["nll"] for each in found["harms"]}
    assert len(losses | {found["clean"]["ensemble"]["nll"]}) == 5
    return found


@pytest.mark.timeout(240)
def test_pictures(gallery: Gallery) -> None:  # noqa: F811
    config = gallery.config().model_dump() | {
        "model": {"family": "resnet20", "classes": 3, "heads": 2, "blocks_in_head": 3},
        "sparsity": {"density": 0.3},
        "parallel": {"deterministic_reduce": True},
    }
    found = on_one_and_two(Config.model_validate(config))
    assert found["clean"]["set"]["samples"] > 5 and "cBPC" not in found["means"]["corruption"]["ensemble"]


@pytest.mark.timeout(240)
def test_text(sea: Sea) -> None:  # noqa: F811
    small = tiny(model={"vocab_size": 320, "intermediate": 32, "hidden": 32, "layers": 2})
    config = sea.config().model_copy(
        update={"model": small.model, "sparsity": small.sparsity, "parallel": small.parallel}
    )
    found = on_one_and_two(config)
    sets = [each["values"]["set"]["samples"] for each in found["harms"][:2]]
    assert found["clean"]["set"]["samples"] == 12 * 24 < sets[0] < sets[1], "errors cost tokens"
    bits = found["means"]["typing"]["ensemble"]["cBPC"]
    assert bits > found["clean"]["ensemble"]["bits_per_character"] > 0
