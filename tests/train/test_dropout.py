"""model.dropout in training: the same run on every number of ranks, with heads shared out, and recomputed."""

from __future__ import annotations

import pytest
import torch

from nt_pretrain.config.checks import problems
from nt_pretrain.config.schema import Config, ParallelSection
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.dropout import step_dropout
from nt_pretrain.train.state import fresh_state, identity
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks
from tests.train.worlds import SEQUENCES, hash_of, sequences, tiny


def dropped(rate: float = 0.2, **parallel: object) -> Config:
    config = tiny(steps=3, model={"dropout": rate, "heads": 2})
    return config.model_copy(update={"parallel": ParallelSection(deterministic_reduce=True, **parallel)})  # type: ignore[arg-type]


def trained(rank: int, world: int, configs: list[Config]) -> list[tuple[list[list[float]], str]]:
    """Losses of the heads of each step and a hash of the weights of this rank."""
    found = []
    for config in configs:
        ranks = connect(config)
        state = fresh_state(config, ranks)
        losses = []
        for step in (1, 2, 3):
            tokens, documents = sequences(step)
            size = SEQUENCES // ranks.sizes.data
            mine = slice(ranks.data_rank * size, (ranks.data_rank + 1) * size)
            inputs = Inputs.of_text(tokens[mine], documents[mine])
            drop = step_dropout(config, step, inputs.samples, ranks)
            losses.append(accumulate_gradients(state.model, config, inputs, ranks, None, drop).per_head)
            apply_gradients(state.optimizer, state.layers, config, ranks, 1e-2)
        whole = config.parallel.head == config.parallel.tensor == 1
        found.append((losses, hash_of(list(state.parameters.values())) if whole else ""))
    return found


@pytest.mark.timeout(200)
def test_the_same_bits_on_one_and_two_ranks_also_recomputed() -> None:
    """Units are dropped by step and sample: neither ranks nor a second forward pass change them."""
    plain, whole = dropped(0.0), dropped()
    again = dropped(activation_checkpoint="full")
    one, dense, recomputed = run_ranks(trained, 1, [whole, plain, again], timeout=150)[0]
    two = run_ranks(trained, 2, [whole], timeout=150)
    assert [each[0] for each in two] == [one, one]
    assert recomputed == one
    assert one[0] != dense[0] and all(abs(a - b) < 1 for a, b in zip(one[0][0], dense[0][0], strict=True))


@pytest.mark.timeout(200)
def test_shared_heads_and_shared_products_drop_the_same_units() -> None:
    one = run_ranks(trained, 1, [dropped()], timeout=150)[0][0][0]
    shared = [dropped(head=2), dropped(tensor=2)]
    for found in run_ranks(trained, 2, shared, timeout=150):
        for losses, _ in found:
            torch.testing.assert_close(torch.tensor(losses), torch.tensor(one), rtol=1e-4, atol=1e-5)


def test_it_does_not_go_with_compilation_and_may_change_between_attempts() -> None:
    assert not any("model.dropout" in line for line in problems(dropped()))
    assert any(
        "model.dropout: 0.2 does not go with parallel.compile" in line for line in problems(dropped(compile=True))
    )
    assert identity(dropped(), "") == identity(dropped(0.0), ""), "it is no part of what a checkpoint is"
