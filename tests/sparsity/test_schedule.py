"""Schedules against the paper's closed forms."""

import pytest

from nt_pretrain.config.schema import Config, SparsitySection, TrainSection
from nt_pretrain.sparsity.schedule import is_update_step, overall_density, prune_rate, update_count


def config(steps: int, **sparsity) -> Config:
    return Config(train=TrainSection(steps=steps), sparsity=SparsitySection(**{"density": 0.9} | sparsity))


@pytest.mark.parametrize(
    ("step", "rate"),
    [(50, 0.499975), (550, 0.497013), (1100, 0.488125), (2500, 0.440699), (5550, 0.252885), (8000, 0.094733),
     (10000, 0.017111), (11100, 0.005001), (11111, 0.005)],
)  # fmt: skip
def test_prune_rate_of_the_paper(step, rate):
    assert prune_rate(config(11_111), step) == pytest.approx(rate, abs=6e-7)


def test_paper_has_222_updates():
    run = config(11_111)
    steps = [step for step in range(1, 11_112) if is_update_step(run, step)]
    assert (len(steps), steps[0], steps[-1]) == (222, 50, 11_100)
    assert update_count(run) == 222
    assert not any(is_update_step(config(1000, density=1.0), step) for step in range(1001))


def test_stop_fraction_ends_updates():
    run = config(1000, stop_fraction=0.5, update_every=30)
    steps = [step for step in range(1, 1001) if is_update_step(run, step)]
    assert steps[-1] == 480 and len(steps) == update_count(run)


def test_shapes_of_prune_rate_and_density():
    assert prune_rate(config(100, prune_rate_schedule="constant"), 77) == 0.5
    assert prune_rate(config(100, prune_rate_schedule="linear"), 50) == pytest.approx(0.2525)
    falling = config(100, density=0.4, density_schedule="linear", density_start=0.8)
    assert [round(overall_density(falling, step), 3) for step in (0, 50, 100)] == [0.8, 0.6, 0.4]
    curved = config(100, density=0.4, density_schedule="cosine", density_start=0.8)
    assert overall_density(curved, 0) == pytest.approx(0.8) and overall_density(curved, 100) == pytest.approx(0.4)
    assert overall_density(config(100), 3) == 0.9


def test_steps_over_density():
    run = Config(train=TrainSection(steps=10_000, steps_over_density=True), sparsity=SparsitySection(density=0.9))
    assert run.total_steps == 11_111
