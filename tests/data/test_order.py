"""The order of documents: complete, mixed, and independent of how it is asked for."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_pretrain.data.order import Order, permutation

FIXED = [0, 1, 2, 3, 6, 7, 5, 4]
"""What permutation(8, 0, "shards", 0) was when checkpoints first depended on it."""


def test_permutations_are_fixed_for_all_time():
    assert permutation(8, 0, "shards", 0).tolist() == FIXED
    assert permutation(8, 1, "shards", 0).tolist() != FIXED


def test_permutations_are_uniform():
    """Each of 24 orders of 4 things about equally often (chi-square of 23 degrees of freedom)."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(12_000):
        order = tuple(permutation(4, seed).tolist())
        counts[order] = counts.get(order, 0) + 1
    chi_square = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert len(counts) == 24 and chi_square < 55


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    lanes=st.integers(1, 16),
    window=st.integers(1, 50),
    seed=st.integers(0, 5),
)
def test_every_document_exactly_once_per_epoch(sizes, lanes, window, seed):
    order = Order(sizes, seed, lanes, window)
    for epoch in (0, 1, 7):
        seen = []
        for lane in range(lanes):
            first, stop = order.lane_bounds(lane)
            assert stop - first in (sum(sizes) // lanes, sum(sizes) // lanes + 1)
            seen += [order.document(epoch, lane, position) for position in range(stop - first)]
        assert sorted(seen) == [(shard, document) for shard, size in enumerate(sizes) for document in range(size)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_place_is_known_without_what_came_before(data):
    sizes, lanes = [17, 3, 30, 8], 4
    places = [
        (epoch, lane, position)
        for epoch in (0, 1)
        for lane in range(lanes)
        for position in range(14)
    ]  # fmt: skip
    whole = {place: Order(sizes, 0, lanes, 5).document(*place) for place in places}
    one = Order(sizes, 0, lanes, 5)
    for place in data.draw(st.lists(st.sampled_from(places), max_size=30)):
        assert one.document(*place) == whole[place]


def test_epochs_and_seeds_differ():
    sizes = [50, 50, 50]
    orders = {
        (seed, epoch): [Order(sizes, seed, 1, 32).document(epoch, 0, n) for n in range(150)]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4


def test_documents_of_a_window_are_mixed():
    numbers = np.array([Order([1000], 0, 1, 256).document(0, 0, n)[1] for n in range(256)])
    assert sorted(numbers) == list(range(256))
    assert abs(np.corrcoef(numbers, np.arange(256))[0, 1]) < 0.2



