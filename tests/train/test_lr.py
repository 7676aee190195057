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


def test_no_warm_up_starts_at_the_peak():
    run = Config(train=TrainSection(steps=10), optim=OptimSection(lr=1.0))
    assert learning_rate(run, 1) > 0.97
