"""What heads say of batches, on real ranks: the same bits whatever the mesh of data, batch size or number of ranks."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.config.schema import ParallelSection
from nt_pretrain.eval.gather import gather_measures, said
from nt_pretrain.eval.measure import values_of
from nt_pretrain.eval.validate import validate
from nt_pretrain.eval.voices import Voices
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.parallel.batch_norm import norms_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from tests.gloo import run_ranks
from tests.train import test_pictures as pictures
from tests.train.worlds import sequences, tiny


def dealt(rank: int, world: int, size: int):
    """The eight sequences, `size` at a time in turn to each rank, filled up with sequences without targets."""
    tokens, documents = sequences(99)
    rounds = math.ceil(len(tokens) / (world * size))
    for first in range(rank * size, rounds * world * size, world * size):
        some, where = tokens[first : first + size], documents[first : first + size]
        filler = size - len(some)
        some = torch.cat([some, torch.zeros(filler, some.shape[1], dtype=some.dtype)])
        where = torch.cat([where, torch.full((filler, where.shape[1]), -1, dtype=where.dtype)])
        yield Inputs.of_text(some, where)


def _table(rank: int, world: int, size: int, parallel: dict[str, int], temperature: float | None = None) -> list[int]:
    config = tiny().model_copy(update={"parallel": ParallelSection(deterministic_reduce=True, **parallel)})
    ranks = connect(config)
    state = fresh_state(config, ranks)
    temperatures = None if temperature is None else torch.full((5,), temperature, dtype=torch.float64)
    batches = list(dealt(ranks.data_rank, ranks.sizes.data, size))
    told: list[int] = []
    measures = gather_measures(
        Voices.of(state.model, config), batches, ranks, temperatures=temperatures, progress=told.append, classwise=160
    )
    assert told == list(range(1, len(batches) + 1))
    return measures.table().tolist()


@pytest.mark.timeout(200)
def test_the_same_bits_on_any_number_of_ranks_and_for_any_batch_size() -> None:
    alone = run_ranks(_table, 1, 8, {})[0]
    assert alone[0] == 8 * 24 - 10  # samples: every target once, padding never
    for world, size in ((1, 1), (1, 3), (2, 3), (3, 1)):
        for table in run_ranks(_table, world, size, {}):
            assert table == alone, (world, size)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("parallel", [{"head": 3}, {"tensor": 2}], ids=str)
def test_ranks_that_share_heads_or_products_count_each_sample_once(parallel: dict[str, int]) -> None:
    (alone,) = run_ranks(_values, 1, {})
    for found in run_ranks(_values, math.prod(parallel.values()), parallel):
        assert found["set"]["samples"] == alone["set"]["samples"]
        for member, values in alone.items():
            for name, value in values.items():
                assert found[member][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (member, name)


def _values(rank: int, world: int, parallel: dict[str, int]) -> dict[str, dict[str, float]]:
    config = tiny().model_copy(update={"parallel": ParallelSection(**parallel)})
    ranks = connect(config)
    state = fresh_state(config, ranks)
    batches = list(dealt(ranks.data_rank, ranks.sizes.data, 1))
    values = values_of(gather_measures(Voices.of(state.model, config), batches, ranks))
    # The losses are those that a run tells while it trains.
    losses = validate(state.model, config, batches, ranks)
    for head in range(3):
        assert values[f"head_{head}"]["nll"] == pytest.approx(losses[f"validation/loss_head_{head}"], rel=1e-5)
    assert values["ensemble"]["nll"] == pytest.approx(losses["validation/loss_ensemble"], rel=1e-5)
    assert values["ensemble_logit"]["nll"] == pytest.approx(losses["validation/loss_ensemble_logit"], rel=1e-5)
    return values


def _modes_and_numbers(rank: int, world: int) -> None:
    config = tiny()
    ranks = connect(config)
    model = fresh_state(config, ranks).model
    heads = list(model.heads.values())
    model.train()
    heads[0].eval()  # as whoever trains a part of it
    numbers = []
    for words in said(Voices.of(model, config), dealt(rank, world, 2), ranks):
        assert not any(module.training for module in model.modules())
        assert words.logits.shape == (3, len(words.labels), 160)
        assert (words.labels != IGNORED).all()
        numbers.append(words.samples)
    assert model.training and heads[1].training and not heads[0].training
    # Each target with the number of its sequence in the whole set: the fourth has ten targets less.
    seen = torch.cat(numbers).bincount(minlength=8)
    mine = [number for number in range(8) if number // 2 % world == rank]
    assert seen.tolist() == [(14 if number == 3 else 24) if number in mine else 0 for number in range(8)]
    with pytest.raises(ZeroDivisionError):
        for _ in said(Voices.of(model, config), (1 / 0 for _ in range(1)), ranks):  # type: ignore[misc]
            pass
    assert model.training and not heads[0].training


@pytest.mark.timeout(100)
def test_evaluation_mode_is_left_again_and_samples_have_their_number() -> None:
    run_ranks(_modes_and_numbers, 2)


SAMPLES = 1003
"""No number of ranks or batch size here divides it."""
SIZES = {1: (64, 7), 2: (64, 1), 3: (7, 1)}
"""Batch sizes by number of ranks: enough to compare each with each."""


def _picture_tables(rank: int, world: int) -> list[list[int]]:
    """All sums of the pictures, for some batch sizes."""
    config = pictures.tiny()
    ranks = connect(config)
    model = fresh_state(config, ranks).model
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (SAMPLES, 3, 16, 16), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 5, (SAMPLES,), generator=generator)
    for norm in norms_of(model):  # running statistics as of a network that has seen something
        norm.running_mean.uniform_(-0.3, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)

    def dealt(size: int):
        for first in range(rank * size, -(-SAMPLES // (world * size)) * world * size, world * size):
            some, where = pixels[first : first + size], labels[first : first + size]
            filler = size - len(some)
            yield Inputs.of_labelled(
                torch.cat([some, torch.zeros(filler, 3, 16, 16, dtype=torch.uint8)]),
                torch.cat([where, torch.full((filler,), IGNORED)]),
            )

    return [
        gather_measures(Voices.of(model, config), dealt(size), ranks, classwise=5).table().tolist()
        for size in SIZES[world]
    ]


@pytest.mark.timeout(250)
def test_pictures_the_same_bits_on_1_2_and_3_ranks_for_batches_of_1_7_and_64() -> None:
    found = [tables for world in SIZES for tables in run_ranks(_picture_tables, world, timeout=200)]
    tables = [table for each in found for table in each]
    assert len(tables) == 12 and tables[0][0] == SAMPLES
    assert all(table == tables[0] for table in tables)
