"""Steps of networks whose members share weights, on real ranks: the same bits on one and two, in bf16 too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.eval.gather import gather_measures
from nt_pretrain.eval.measure import values_of
from nt_pretrain.eval.voices import Voices
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.many_inputs import Orders, input_orders
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks
from tests.train import test_pictures
from tests.train.test_pictures import PICTURES, pictures
from tests.train.worlds import hash_of


def tiny(kind: str, **train: Any) -> Config:
    inputs = {"batch_repeats": 2, "same_inputs": 0.5} if kind == "inputs" else {}
    return test_pictures.tiny(
        model={"heads": 1, "blocks_in_head": 0, "sharing": kind, "members": 3},
        train={"steps": 2, "micro_batch": 4} | inputs | train,
    )


def train_rank(rank: int, world: int, precision: str) -> dict[str, Any]:
    """Weights, losses and a validation of every kind of sharing."""
    found = {}
    for kind in ("rank_one", "inputs"):
        config = tiny(kind, precision=precision)
        ranks = connect(config)
        state, losses = fresh_state(config, ranks), []
        mine = PICTURES // world
        for step in (1, 2):
            orders = input_orders(config, step, mine, ranks)
            batch = pictures(step).part(ranks.data_rank * mine, mine)
            taken = accumulate_gradients(state.model, config, batch, ranks, None, None, orders)
            apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr)
            losses.append(taken.per_head)
        weights = hash_of(list(state.parameters.values()))
        batches = [pictures(9).part(ranks.data_rank * mine, mine)]
        measures = gather_measures(Voices.of(state.model, config), batches, ranks)
        found[kind] = (weights, losses, values_of(measures)["set"]["samples"], taken.targets)
    return found


@pytest.mark.timeout(180)
def test_pictures_are_seen_together_and_trained_on_alike_on_one_and_two_ranks() -> None:
    (alone,) = run_ranks(train_rank, 1, "fp32")
    for found in run_ranks(train_rank, 2, "fp32"):
        for kind, (weights, losses, samples, targets) in found.items():
            assert (weights, losses) == alone[kind][:2], kind
            assert len(losses[0]) == 3 and len(set(losses[0])) == 3
            assert (samples, targets) == (PICTURES - 1, PICTURES - 1), "one could not be read"
    (rounded,) = run_ranks(train_rank, 1, "bf16")
    for kind in alone:
        for one, other in zip(rounded[kind][1][0], alone[kind][1][0], strict=True):
            assert one == pytest.approx(other, rel=0.05) and one != other


def test_orders_are_of_the_samples_and_never_of_the_rank() -> None:
    whole = Orders(members=3, repeats=2, same=0.25, seed=5, step=7, first=0)
    second_rank = Orders(members=3, repeats=2, same=0.25, seed=5, step=7, first=8)
    assert torch.equal(whole.of(8, 4), second_rank.of(0, 4))
    orders = whole.of(8, 4)
    assert orders.shape == (3, 8)
    for member in orders:
        assert member.bincount().tolist() == [2, 2, 2, 2], "every member sees every sample twice"
    assert torch.equal(orders[0, 6:], orders[1, 6:]) and torch.equal(orders[0, 6:], orders[2, 6:])
    large = whole.of(0, 64)
    alike = (large[0] == large[1]).float().mean().item()
    assert 0.25 <= alike < 0.35, "a quarter of the rows, and chance"
    for other in (Orders(3, 2, 0.25, 5, 8, 0), Orders(3, 2, 0.25, 6, 7, 0)):
        assert not torch.equal(other.of(0, 64), large)
