"""Which samples fit temperatures: by their number alone, a share, bounded; and that no others do."""

from __future__ import annotations

import pytest
import torch

from nt_pretrain.eval.temperature import fit_temperatures
from nt_pretrain.eval.voices import Voices
from nt_pretrain.evaluation.calibrate import MOST, MOST_BYTES, fit, held_out
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from tests.eval.test_gather import dealt
from tests.gloo import run_ranks
from tests.train.worlds import tiny


def test_a_share_whatever_else_there_is() -> None:
    held = held_out(0.2, 50_000, labels=1, heads=3, classes=10)
    assert int(held.chosen.sum()) == pytest.approx(10_000, abs=300)
    longer = held_out(0.2, 50_064, labels=1, heads=3, classes=10)
    assert longer.chosen[:50_000].equal(held.chosen)
    numbers = torch.tensor([[5, 49_999], [0, 7]])
    assert held.of(numbers).equal(held.chosen[numbers])
    less = held_out(0.1, 50_000, labels=1, heads=3, classes=10)
    assert (held.chosen | ~less.chosen).all(), "a smaller share is a part of the larger"


def test_labels_and_bytes_are_bounded() -> None:
    def count(**sizes: int) -> int:
        return int(held_out(0.5, 100_000, **sizes).chosen.sum())

    assert count(labels=1, heads=3, classes=10) == MOST
    assert count(labels=256, heads=3, classes=320) == MOST // 256
    assert count(labels=256, heads=3, classes=32_000) == MOST_BYTES // (4 * 3 * 32_000) // 256
    assert count(labels=4096, heads=8, classes=128_000) == 1, "one there must be"


def _fitted(rank: int, world: int, size: int) -> tuple[list[float], int, list[int]]:
    config = tiny()
    ranks = connect(config)
    model = fresh_state(config, ranks).model
    held = held_out(0.3, 64, labels=24, heads=3, classes=160)
    told: list[int] = []
    found = fit(Voices.of(model, config), dealt(rank, world, size), held, ranks, told.append)
    return found.values.tolist(), found.samples, told


@pytest.mark.timeout(150)
def test_the_same_temperatures_on_any_ranks_from_the_held_samples_only() -> None:
    alone, samples, told = run_ranks(_fitted, 1, 1)[0]
    chosen = held_out(0.3, 8, labels=24, heads=3, classes=160).chosen
    assert 0 < int(chosen.sum()) < 8
    assert samples == sum((14 if number == 3 else 24) for number in range(8) if chosen[number])
    assert told == list(range(1, 9)), "rounds without a held sample are told too"
    for world, size in ((1, 8), (2, 1), (3, 2)):
        for values, count, _ in run_ranks(_fitted, world, size):
            assert (values, count) == (alone, samples), (world, size)
    assert alone == run_ranks(_by_hand, 1)[0]


def _by_hand(rank: int, world: int) -> list[float]:
    from nt_pretrain.eval.gather import said

    config = tiny()
    ranks = connect(config)
    model = fresh_state(config, ranks).model
    chosen = held_out(0.3, 8, labels=24, heads=3, classes=160).chosen
    kept = []
    for words in said(Voices.of(model, config), dealt(0, 1, 8), ranks):
        mine = chosen[words.samples]
        kept.append((words.logits[:, mine], words.labels[mine]))
    return fit_temperatures(lambda: kept, 3).values.tolist()
