"""A position survives JSON, is put together from all ranks, and means something only under the same plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.position import Plan, Position, merge
from nt_pretrain.data.text import Cursor

PLAN = Plan({"data": "f" * 32}, "a" * 64, seed=1, lanes=4, window=5, sequence_length=24, packing="pack", global_batch=8)
WHOLE = Position(PLAN, 7, {"data": {lane: Cursor(0, lane, 2 * lane, 2**64 - lane - 1) for lane in range(4)}})


def of_lanes(*lanes: int) -> Position:
    return replace(WHOLE, cursors={"data": {lane: WHOLE.cursors["data"][lane] for lane in lanes}})


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
        ({"fingerprints": {"data": "0" * 32}}, f"the data in data.path: {'f' * 32} -> {'0' * 32}"),
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
    assert WHOLE.check(replace(PLAN, global_batch=16)) == []


def test_changes_may_be_allowed_but_not_those_of_lanes() -> None:
    other = replace(PLAN, seed=2, fingerprints={"data": "0" * 32})
    assert WHOLE.check(other, allow_change=True) == WHOLE.differences(other)
    assert len(WHOLE.differences(other)) == 2
    with pytest.raises(DataError, match=r"go on all the same with data\.allow_change=true"):
        WHOLE.check(other)
    with pytest.raises(DataError, match=r"(?s)data\.lanes.*4 -> 8\nSet it back, or start a new run"):
        WHOLE.check(replace(other, lanes=8), allow_change=True)


def test_sources_that_came_and_went_are_named() -> None:
    mixed = replace(PLAN, fingerprints={"web": "1" * 32, "books": "2" * 32})
    other = replace(PLAN, fingerprints={"web": "1" * 32, "code": "3" * 32})
    assert replace(WHOLE, plan=mixed).differences(other) == [
        f"the data of data.sources.code: not there -> {'3' * 32}",
        f"the data of data.sources.books: {'2' * 32} -> gone",
    ]


@pytest.mark.parametrize(
    "content", [{}, {"plan": {}, "batch": 1, "cursors": {}}, {"plan": 1, "batch": 1, "cursors": 2}]
)
def test_a_position_of_another_version_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(DataError, match="another version of this program wrote it"):
        Position.from_json(content)
