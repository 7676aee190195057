"""Robustness of a sharded model, whose text is disturbed and whose weights are dropped, on one rank and on two."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial

import pytest
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.validation import validation_text
from nt_pretrain.eval.gather import gather_measures
from nt_pretrain.eval.harms import Harm, harms_of
from nt_pretrain.eval.measure import Measures
from nt_pretrain.eval.robustness import Samples, measure_all
from nt_pretrain.eval.text_noise import with_typing_errors
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from tests.data.conftest import (
    Sea,
    sea,  # noqa: F401  (a fixture)
)
from tests.gloo import run_ranks
from tests.train.worlds import tiny


def disturb(text: str, name: str, harm: Harm) -> str:
    return with_typing_errors(text, harm.name, harm.amount[0], seed=4, sample=name)


def _measured(rank: int, world: int, config: Config) -> str:
    ranks = connect(config)
    model = fresh_state(config, ranks).model
    before = [p.full_tensor().clone() for p in model.parameters()]  # type: ignore[attr-defined]

    def measure(batches: Iterable[tuple[Tensor, Tensor]]) -> Measures:
        return gather_measures(model, config, (Inputs.of_text(*batch) for batch in batches), ranks)

    def samples(harm: Harm | None) -> Samples:
        text = validation_text(config, disturb=None if harm is None else partial(disturb, harm=harm))
        return Samples(text.batches(config, rank=ranks.data_rank, world=ranks.sizes.data), text.characters)

    harms = [harm for harm in harms_of(["swap", "weight_dropout"], pictures=False) if harm.severity in (1, 5)]
    found = measure_all(measure, samples, harms, model=model, seed=4, domains={"own again": partial(samples, None)})
    after = [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))
    assert found.domains["own again"] == found.clean, "the weights are back, and so are the answers"
    return json.dumps(found.to_json())


@pytest.mark.timeout(240)
def test_ranks_leave_no_trace(sea: Sea) -> None:  # noqa: F811
    small = tiny(model={"vocab_size": 320, "intermediate": 32, "hidden": 32, "layers": 2})
    config = sea.config().model_copy(
        update={"model": small.model, "sparsity": small.sparsity, "parallel": small.parallel}
    )
    (one,) = run_ranks(_measured, 1, config, timeout=110)
    assert run_ranks(_measured, 2, config, timeout=110) == [one, one]
    found = json.loads(one)
    values = {(each["name"], each["severity"]): each["values"]["ensemble"] for each in found["harms"]}
    assert len({value["nll"] for value in values.values()} | {found["clean"]["ensemble"]["nll"]}) == 5
    sets = [each["values"]["set"]["samples"] for each in found["harms"][:2]]
    assert found["clean"]["set"]["samples"] == 12 * 24 < sets[0] < sets[1], "errors cost tokens"
    bits = found["means"]["typing"]["ensemble"]["cBPC"]
    assert bits > found["clean"]["ensemble"]["bits_per_character"] > 0
