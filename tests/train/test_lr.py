"""Learning rate schedules."""

import pytest

from nt_pretrain.config.schema import Config, OptimSection, TrainSection
from nt_pretrain.train.lr import learning_rate


def config(schedule: str, **optim) -> Config:
    return Config(
        train=TrainSection(steps=1000), optim=OptimSection(lr=2.0, schedule=schedule, warmup_steps=100, **optim)
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_warm_up_peak_and_end(schedule):
    run = config(schedule)
    assert learning_rate(run, 1) == pytest.approx(0.02)
    assert learning_rate(run, 100) == 2.0
    assert learning_rate(run, 1000) == pytest.approx(0.2)
    rates = [learning_rate(run, step) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_middle_of_the_shapes():
    assert learning_rate(config("cosine"), 550) == pytest.approx(1.1)
    assert learning_rate(config("linear"), 550) == pytest.approx(1.1)
    assert learning_rate(config("wsd", decay_fraction=0.2), 800) == 2.0
    assert learning_rate(config("wsd", decay_fraction=0.2), 900) == pytest.approx(1.1)


def test_steps_of_the_classic_recipe():
    """90 epochs of 50 steps: a tenth after 30, 60 and 80 of them."""
    run = Config(train=TrainSection(steps=4500), optim=OptimSection(lr=0.5, schedule="step", warmup_steps=250))
    assert learning_rate(run, 125) == pytest.approx(0.25) and learning_rate(run, 250) == 0.5
    for last, rate in ((1500, 0.5), (3000, 0.05), (4000, 0.005)):
        assert learning_rate(run, last) == pytest.approx(rate, rel=1e-12)
        assert learning_rate(run, last + 1) == pytest.approx(rate / 10, rel=1e-12)
    assert learning_rate(run, 4500) == pytest.approx(0.0005, rel=1e-12)


def test_own_milestones():
    run = config("step", milestones=(0.25, 0.5, 0.75), decay_factor=0.5)
    assert [learning_rate(run, step) for step in (250, 251, 501, 751, 1000)] == [2.0, 1.0, 0.5, 0.25, 0.25]
    assert learning_rate(config("step", milestones=()), 1000) == 2.0


def test_no_warm_up_starts_at_the_peak():
    run = Config(train=TrainSection(steps=10), optim=OptimSection(lr=1.0))
    assert learning_rate(run, 1) > 0.97
