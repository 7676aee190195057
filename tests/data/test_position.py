"""A position survives JSON, is put together from all ranks, and means something only under the same plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.position import Plan, Position, merge
from nt_pretrain.data.text import Cursor

PLAN = Plan("f" * 32, "a" * 64, seed=1, lanes=4, window=5, sequence_length=24, packing="pack", global_batch=8)
WHOLE = Position(PLAN, 7, {lane: Cursor(0, lane, 2 * lane) for lane in range(4)})


def of_lanes(*lanes: int) -> Position:
    return replace(WHOLE, cursors={lane: WHOLE.cursors[lane] for lane in lanes})


def test_it_survives_json() -> None:
    assert Position.from_json(json.loads(json.dumps(WHOLE.to_json()))) == WHOLE


def test_ranks_make_one_position() -> None:
    assert merge([of_lanes(2, 3), of_lanes(0, 1)]) == WHOLE
    with pytest.raises(ValueError, match="cursors of 3 lanes, but there are 4"):
        merge([of_lanes(0, 1), of_lanes(1, 2)])
    with pytest.raises(ValueError, match="positions of different batches"):
        merge([of_lanes(0, 1), replace(of_lanes(2, 3), batch=8)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "0" * 32}, f"the data in data.path: {'f' * 32} -> {'0' * 32}"),
        ({"tokenizer": "b" * 64}, f"data.tokenizer: {'a' * 64} -> {'b' * 64}"),
        ({"seed": 2}, "run.seed: 1 -> 2"),
        ({"lanes": 8}, r"data.lanes \(or train.global_batch, from which it follows\): 4 -> 8"),
        ({"window": 6}, "data.window: 5 -> 6"),
        ({"sequence_length": 48}, "data.sequence_length: 24 -> 48"),
        ({"packing": "truncate"}, "data.packing: pack -> truncate"),
    ],
)
def test_another_plan_is_refused_by_name(change: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        WHOLE.check(replace(PLAN, **change))  # type: ignore[arg-type]


def test_all_differences_are_named_at_once() -> None:
    with pytest.raises(DataError, match=r"(?s)run\.seed: 1 -> 2.*data\.window: 5 -> 6"):
        WHOLE.check(replace(PLAN, seed=2, window=6))


def test_a_larger_batch_goes_on_where_the_lanes_stand() -> None:
    WHOLE.check(replace(PLAN, global_batch=16))


@pytest.mark.parametrize(
    "content", [{}, {"plan": {}, "batch": 1, "cursors": {}}, {"plan": 1, "batch": 1, "cursors": 2}]
)
def test_a_position_of_another_version_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(DataError, match="another version of this program wrote it"):
        Position.from_json(content)
