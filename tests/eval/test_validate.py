"""Validation on real ranks: independent of world size and batch size; the unigram level; the authors' divisor."""

import math

import pytest
import torch

from nt_pretrain.config.schema import EvalSection
from nt_pretrain.eval.validate import unigram_loss, validate
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks
from tests.train.worlds import sequences, tiny


def _batches(rank: int, world: int, size: int):
    tokens, documents = sequences(99)
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    tokens, documents = tokens[mine], documents[mine]
    for first in range(0, len(tokens), size):
        yield Inputs.of_text(tokens[first : first + size], documents[first : first + size])


def _validate(rank: int, world: int, size: int, rule: str) -> dict[str, float]:
    config = tiny().model_copy(update={"eval": EvalSection(ensemble=rule, authors_divisor=True)})
    ranks = connect(config)
    state = fresh_state(config, ranks)
    values = validate(state.model, config, _batches(rank, world, size), ranks)
    counts = torch.arange(160.0)
    values["unigram"] = unigram_loss(counts, _batches(rank, world, size), ranks)
    # Training goes on after a validation as if there had been none.
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    tokens, documents = sequences(1)
    accumulate_gradients(state.model, config, Inputs.of_text(tokens[mine], documents[mine]), ranks)
    values["norm"] = apply_gradients(state.optimizer, state.layers, config, ranks, 1e-2)
    return values


@pytest.mark.timeout(200)
def test_world_and_batch_size_do_not_matter():
    alone = run_ranks(_validate, 1, 8, "probability")[0]
    assert alone["validation/targets"] == 8 * 24 - 10
    for world, size in ((1, 3), (2, 1), (4, 2)):
        for found in run_ranks(_validate, world, size, "probability"):
            for key, value in found.items():
                if key != "validation/perplexity_authors_divisor":
                    assert value == pytest.approx(alone[key], rel=2e-6), key


def test_headline_follows_the_rule_and_the_authors_divisor_is_too_low():
    values = run_ranks(_validate, 1, 2, "logit")[0]
    assert values["validation/perplexity_ensemble"] == math.exp(values["validation/loss_ensemble_logit"])
    # 4 batches: the sum of batch means is divided by 5.
    assert values["validation/perplexity_authors_divisor"] < values["validation/perplexity_ensemble"]
    expected = math.exp(values["validation/loss_ensemble_logit"] * 4 / 5)
    assert values["validation/perplexity_authors_divisor"] == pytest.approx(expected, rel=1e-3)


def test_unigram_level():
    values = run_ranks(_validate, 1, 8, "probability")[0]
    tokens, documents = sequences(99)
    _, targets, _ = Inputs.of_text(tokens, documents)
    frequency = (torch.arange(160.0).double() + 1) / (torch.arange(160.0).double() + 1).sum()
    expected = -frequency.log()[targets[targets >= 0]].mean()
    assert values["unigram"] == pytest.approx(float(expected))
