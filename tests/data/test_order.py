"""The order is a permutation in every epoch, known at any place without what came before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.data.order import Order, permutation

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def epoch_of(order: Order, epoch: int) -> list[tuple[int, int]]:
    lanes = range(order.lanes)
    return [order.document(epoch, lane, n) for lane in lanes for n in range(order.lane_documents(lane))]


@settings(deadline=None)
@given(SHARDS, st.integers(0, 3), st.integers(1, 16), st.integers(1, 40), st.integers(0, 4))
def test_each_document_comes_exactly_once_in_an_epoch(
    sizes: list[int], seed: int, lanes: int, window: int, epoch: int
) -> None:
    order = Order(sizes, seed, min(lanes, sum(sizes)), window)
    every = [(shard, document) for shard, size in enumerate(sizes) for document in range(size)]
    assert sorted(epoch_of(order, epoch)) == every


@settings(deadline=None)
@given(SHARDS, st.integers(1, 16), st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_what_was_asked_before(sizes: list[int], lanes: int, window: int, draw) -> None:  # type: ignore[no-untyped-def]
    lanes = min(lanes, sum(sizes))
    straight = Order(sizes, 7, lanes, window)
    places = [(e, lane, n) for e in range(6) for lane in range(lanes) for n in range(straight.lane_documents(lane))]
    expected = {place: straight.document(*place) for place in places}
    draw.shuffle(places)
    jumping = Order(sizes, 7, lanes, window)
    assert {place: jumping.document(*place) for place in places} == expected


@given(SHARDS, st.integers(1, 16))
def test_lanes_differ_by_one_document_at_most(sizes: list[int], lanes: int) -> None:
    order = Order(sizes, 0, min(lanes, sum(sizes)), 4)
    lengths = [order.lane_documents(lane) for lane in range(order.lanes)]
    assert sum(lengths) == sum(sizes)
    assert max(lengths) - min(lengths) <= 1


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = epoch_of(Order([20] * 10, 0, 4, 16), 0)
    assert epoch_of(Order([20] * 10, 0, 4, 16), 1) != first
    assert epoch_of(Order([20] * 10, 1, 4, 16), 0) != first


def test_a_window_mixes_what_lies_together() -> None:
    order = Order([1000], 0, 1, 100)
    places = np.array([order.document(0, 0, n)[1] for n in range(1000)])
    assert (places[:100] < 100).all(), "a document stays in its window"
    assert abs(float(np.corrcoef(places[:100], np.arange(100))[0, 1])) < 0.3


def test_the_permutation_is_the_same_for_ever() -> None:
    """Checkpoints hold places in this order: other values here mean that no older run can go on."""
    assert permutation(8, 0, "shards", 0).tolist() == [0, 1, 2, 3, 6, 7, 5, 4]
    assert permutation(8, 1, "window", 2, 3, 4).tolist() == [6, 0, 7, 5, 1, 4, 3, 2]


def test_more_lanes_than_documents_cannot_be() -> None:
    with pytest.raises(AssertionError, match="4 lanes, 3 documents"):
        Order([3], 0, 4, 1)


SOME_EMPTY = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


def digest_of(number: int) -> int:
    """splitmix64 (Steele, Lea, Flood, OOPSLA 2014) in plain integers: the mark of a document by its number."""
    x = (number + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def number(sizes: list[int], shard: int, document: int) -> int:
    """The place of a document in the corpus as the manifest lists it."""
    return sum(sizes[:shard]) + document


@settings(deadline=None)
@given(SOME_EMPTY, st.integers(0, 3), st.integers(1, 16), st.integers(1, 40), st.integers(0, 3), st.integers(1, 9))
def test_the_digest_of_a_lane_is_that_of_its_documents(
    sizes: list[int], seed: int, lanes: int, window: int, epoch: int, chunk: int
) -> None:
    order = Order(sizes, seed, min(lanes, sum(sizes)), window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nt_pretrain.data.order.CHUNK", chunk)
        found = [order.lane_digest(epoch, lane) for lane in range(order.lanes)]
    for lane, digest in enumerate(found):
        places = [order.document(epoch, lane, n) for n in range(order.lane_documents(lane))]
        assert digest == sum(digest_of(number(sizes, *place)) for place in places) % 2**64
    assert sum(found) % 2**64 == sum(map(digest_of, range(sum(sizes)))) % 2**64, "an epoch is every document once"


@settings(deadline=None)
@given(SOME_EMPTY, st.integers(1, 16), st.integers(1, 40), st.integers(0, 3))
def test_a_window_reads_from_these_shards_only(sizes: list[int], lanes: int, window: int, epoch: int) -> None:
    order = Order(sizes, 5, min(lanes, sum(sizes)), window)
    for lane in range(order.lanes):
        count = order.lane_documents(lane)
        for which in range(-(-count // window)):
            inside = range(which * window, min((which + 1) * window, count))
            touched = order.shards_of_window(epoch, lane, which)
            assert len(touched) == len(set(touched))
            assert set(touched) == {order.document(epoch, lane, n)[0] for n in inside}
        assert order.shards_of_window(epoch, lane, -(-count // window)) == []


@settings(deadline=None)
@given(SOME_EMPTY, st.integers(1, 8), st.integers(1, 20), st.integers(0, 3))
def test_the_digest_before_a_place(sizes: list[int], lanes: int, window: int, epoch: int) -> None:
    order = Order(sizes, 3, min(lanes, sum(sizes)), window)
    for lane in range(order.lanes):
        total = 0
        for position in range(order.lane_documents(lane)):
            assert order.digest_before(epoch, lane, position) == total % 2**64
            total += digest_of(number(sizes, *order.document(epoch, lane, position)))
        assert order.lane_digest(epoch, lane) == total % 2**64


def test_the_digest_is_that_of_splitmix64() -> None:
    """The published generator's first numbers at seeds 0 and 1234567; others make digests of older runs wrong."""
    assert Order([1], 0, 1, 1).marked(0, 0, 0)[2] == digest_of(0) == 0xE220A8397B1DCDAF
    assert digest_of(1234567) == 6457827717110365317
