"""Scores of tokens and windows around them."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.diversity.token_scores import token_scores
from nt_pretrain.diversity.windows import top_windows


def test_heads_that_agree_and_heads_that_do_not() -> None:
    sure = torch.tensor([20.0, 0.0, 0.0, 0.0])
    other = torch.tensor([0.0, 20.0, 0.0, 0.0])
    unsure = torch.zeros(4)
    # Three tokens: both sure of the same, each sure of something else, both unsure.
    logits = torch.stack([torch.stack([sure, sure, unsure]), torch.stack([sure, other, unsure])])
    found = token_scores(logits, torch.tensor([0, 1, 3]), guesses=2)
    assert found.disagreement.tolist() == pytest.approx([0.0, math.log(2), 0.0], abs=1e-6)
    assert found.entropy.tolist() == pytest.approx([0.0, math.log(2), math.log(4)], abs=1e-6)
    assert found.choices.tolist() == [False, True, False]
    assert found.target[:, 1].tolist() == pytest.approx([0.0, 1.0, 0.5], abs=1e-6)
    assert found.guesses.shape == (3, 3, 2) and found.guesses[1, 1, 0] == 1
    assert found.chances[2, 0, 0] == pytest.approx(1.0, abs=1e-6)


def test_more_tokens_than_are_scored_at_once() -> None:
    logits = torch.randn(3, 150, 7, generator=torch.Generator().manual_seed(0))
    whole = token_scores(logits, torch.zeros(150, dtype=torch.int64))
    part = token_scores(logits[:, 100:110], torch.zeros(10, dtype=torch.int64))
    assert torch.allclose(whole.disagreement[100:110], part.disagreement)
    assert bool((whole.disagreement >= 0).all()) and len(whole.choices) == 150


def test_windows_stand_around_the_strongest_answers_and_never_in_padding() -> None:
    values = torch.zeros(3, 20)
    values[0, 15], values[1, 1], values[2, 19] = 2.0, 5.0, 9.0
    allowed = torch.ones(3, 20, dtype=torch.bool)
    allowed[2, 10:] = False
    tokens = torch.arange(60).view(3, 20)
    best, second, last = top_windows(values, tokens, allowed, 3)
    assert best.tokens[best.peak] == 21 and best.tokens[0] == 20 and best.values[best.peak] == 5.0
    assert second.tokens == list(range(7, 19)) and second.tokens[second.peak] == 15
    assert max(last.tokens) < 50
    allowed[2] = False
    assert len(top_windows(values, tokens, allowed, 3)) == 2
